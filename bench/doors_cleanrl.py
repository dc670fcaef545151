"""CleanRL's `ppo.py` on CartPole, its advantage loop timed where it stands, as it is and edited.

The script is run as its users run it, in this process, with two lines around the loop that read the clock.
"""

import os
import re
import runpy
import sys
import tempfile
import time
from contextlib import chdir, redirect_stdout
from pathlib import Path

from bench.doors_frame import AbsentError, Round, Row, measure

FIRST, LAST = "advantages = torch.zeros_like(rewards).to(device)", "returns = advantages + values"
LOOP = re.compile(rf"^( +){re.escape(FIRST)}\n.*?^ +{re.escape(LAST)}\n", re.MULTILINE | re.DOTALL)
CALL = (
    "from fastac.compat import cleanrl\n"
    "advantages, returns = cleanrl.gae(rewards, values, dones, next_value, next_done, args.gamma, args.gae_lambda)\n"
)
NUM_ENVS, NUM_STEPS = 4, 128


def find(text: str) -> re.Match[str]:
    """Where a script has its loop.

    Raises:
        AbsentError: It has none.
    """
    found = LOOP.search(text)
    if found is None:
        raise AbsentError("ppo.py: the advantage loop is not where it was in 2026-04")
    return found


def timed(text: str, *, ours: bool) -> str:
    """The script with a clock around its loop, or around the call in the loop's place."""
    found = find(text)
    indent = found[1]
    body = "".join(f"{indent}{line}\n" for line in CALL.splitlines()) if ours else found[0]
    start, stop = "_clock = _time.process_time()", "_part[0] += _time.process_time() - _clock"
    around = f"{indent}{start}\n{body}{indent}{stop}\n"
    return "import time as _time\n_part = [0.0]\n" + text[: found.start()] + around + text[found.end() :]


def run(checkout: Path, text: str, iterations: int) -> Round:
    """One run of a script's text, from its first line to its last."""
    arguments, path, steps = sys.argv, sys.path[:], iterations * NUM_ENVS * NUM_STEPS
    with tempfile.TemporaryDirectory() as folder, chdir(folder), open(os.devnull, "w") as nowhere:
        Path("ppo_timed.py").write_text(text, encoding="utf-8")
        sys.argv = ["ppo_timed.py", "--no-cuda", "--total-timesteps", str(steps)]
        sys.path.insert(0, str(checkout))
        try:
            with redirect_stdout(nowhere):
                start = time.process_time()
                names = runpy.run_path("ppo_timed.py", run_name="__main__")
                whole = time.process_time() - start
        finally:
            sys.argv, sys.path[:] = arguments, path
    return Round(names["_part"][0], whole, iterations)


def rows(checkout: Path | None, *, smallest: bool = False) -> list[Row]:
    """PPO's advantages in a whole training step.

    Raises:
        AbsentError: There is no checkout, or what the script imports is not installed.
    """
    if checkout is None or not (checkout / "cleanrl" / "ppo.py").is_file():
        raise AbsentError(f"CleanRL: no cleanrl/ppo.py in {checkout}: --cleanrl PATH names a checkout")
    try:
        import torch
        import tyro  # noqa: F401
        from torch.utils import tensorboard  # noqa: F401
    except ImportError as error:
        raise AbsentError(f"CleanRL: {error}") from error
    torch.set_num_threads(1)
    text = (checkout / "cleanrl" / "ppo.py").read_text(encoding="utf-8")
    before, after = timed(text, ours=False), timed(text, ours=True)
    iterations, rounds = (1, 1) if smallest else (10, 5)
    row = Row(
        door="CleanRL PPO",
        part="the loop over `reversed(range(args.num_steps))`",
        step=f"a rollout of {NUM_ENVS} x {NUM_STEPS} steps on CartPole and 4 epochs of 4 minibatches",
        versions={"cleanrl": "2026-04"},
    )
    return [measure(row, lambda: run(checkout, before, iterations), lambda: run(checkout, after, iterations), rounds)]
