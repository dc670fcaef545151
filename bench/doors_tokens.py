"""GAE over tokens, whitened, with holes: verl's function and ours, on the tensors that its trainer holds."""

import time
from typing import Any

from bench import record, tokens
from bench.doors_frame import AbsentError, Row


def rows(*, smallest: bool = False) -> list[Row]:
    """The function alone: the model, whose forward and backward passes are the step, is not here.

    Raises:
        AbsentError: verl is not installed.
    """
    import torch

    from fastac.compat import tokens as door

    shape, rounds = (tokens.SMALLEST, 1) if smallest else (tokens.SHAPE, 7)
    case = tokens.make_case("holes", True, shape)
    try:
        theirs = tokens.verl_function(case).call
    except (ModuleNotFoundError, FileNotFoundError, LookupError) as error:
        raise AbsentError(f'verl: {error}: pip install --no-deps "verl<0.10"') from error
    torch.set_num_threads(1)
    rewards, values, mask = tokens.tensors(case)
    rewards, response_mask = rewards * mask, mask.long()

    def ours() -> Any:
        return door.gae(rewards, values, response_mask, tokens.GAMMA, tokens.LAMBDA)

    row = Row(
        door="token GAE (verl)",
        part="`compute_gae_advantage_return`",
        step=f"{shape[0]} sequences of {shape[1]} tokens with holes, whitened",
        note="the model's passes, which are the step, are not here",
        versions={"verl": record.version("verl")},
    )
    theirs(), ours()
    for _ in range(rounds):
        for call, times in ((theirs, row.part_before), (ours, row.part_after)):
            start = time.process_time()
            call()
            times.append(1e3 * (time.process_time() - start))
    return [row]
