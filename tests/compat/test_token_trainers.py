"""Advantages over tokens: what verl, TRL and OpenRLHF compute, on random masks, holes included."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import fastac
from bench import sources
from fastac.compat import tokens

GAMMA, LAMBDA = 0.97, 0.9


def batch(seed: int, kind: str, shape: tuple[int, int] = (6, 40)) -> tuple[Any, Any, Any]:
    """Rewards, 0 where masked; values, whatever; and a mask of that kind."""
    generator = np.random.default_rng(seed)
    rewards, values = generator.standard_normal((2, *shape))
    if kind == "holes":
        mask = generator.random(shape) < 0.6
        mask[0] = False  # a response that is all somebody else's
    else:
        mask = np.arange(shape[1]) < generator.integers(1, shape[1] + 1, shape[0])[:, None]
    return np.where(mask, rewards, 0), values, mask


def naive(rewards: Any, values: Any, mask: Any, gamma: float, lam: float, whiten: bool) -> tuple[Any, Any]:
    """A sequence at a time: the valid tokens alone, as if the others were not there."""
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for b in range(len(rewards)):
        places = np.flatnonzero(mask[b])
        carry = value = 0.0
        for t in reversed(places):
            carry = rewards[b, t] + gamma * value - values[b, t] + gamma * lam * carry
            value = values[b, t]
            advantages[b, t], returns[b, t] = carry, carry + value
    if whiten:
        kept = advantages[mask]
        advantages = np.where(mask, (advantages - kept.mean()) / (kept.std(ddof=1) + 1e-8), 0)
    return advantages, returns


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("kind", ["responses", "holes"])
@pytest.mark.parametrize("tensors", [False, True])
def test_the_valid_tokens_alone(tensors: bool, kind: str, whiten: bool) -> None:
    """Rows R9 and R10: a hole decays nothing, bootstraps nothing."""
    for seed in range(20):
        rewards, values, mask = batch(seed, kind)
        given = [torch.from_numpy(x) for x in (rewards, values, mask)] if tensors else [rewards, values, mask]
        result = tokens.gae(*given, GAMMA, LAMBDA, whiten=whiten)
        for mine, other in zip(result, naive(rewards, values, mask, GAMMA, LAMBDA, whiten), strict=True):
            np.testing.assert_allclose(np.asarray(mine), other, atol=1e-10)


def test_rewards_on_masked_tokens_are_moved() -> None:
    """To the token before them that the policy wrote; NaN, and what nobody earned, is left out."""
    rewards = np.array([[9.0, 1.0, 2.0, 3.0, 4.0, np.nan], [7.0, 7.0, 7.0, 7.0, 7.0, 7.0]])
    mask = np.array([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    expected = np.array([[0.0, 3.0, 0.0, 7.0, 0.0, 0.0], np.zeros(6)])
    np.testing.assert_array_equal(tokens.move_rewards(rewards, mask), expected)
    moved = tokens.move_rewards(torch.from_numpy(rewards), torch.from_numpy(mask))
    np.testing.assert_array_equal(moved.numpy(), expected)
    values = np.random.default_rng(0).standard_normal(rewards.shape)
    result = tokens.gae(rewards, values, mask, GAMMA, LAMBDA, whiten=False)
    np.testing.assert_allclose(result.advantages, naive(expected, values, mask == 1, GAMMA, LAMBDA, False)[0])
    assert np.isnan(rewards[0, 5])  # what came in stays as it was


def test_rewards_where_they_belong_are_not_copied() -> None:
    rewards, _, mask = batch(0, "holes")
    assert tokens.move_rewards(rewards, mask) is rewards
    tensor = torch.from_numpy(rewards)
    assert tokens.move_rewards(tensor, torch.from_numpy(mask)) is tensor


def test_nothing_masked_and_nothing_valid() -> None:
    rewards, values, _ = batch(0, "responses")
    ones = np.ones_like(rewards)
    plain = fastac.gae(rewards, values, np.zeros(len(rewards)), gamma=GAMMA, gae_lambda=LAMBDA, batch_first=True)
    np.testing.assert_array_equal(tokens.gae(rewards, values, ones, GAMMA, LAMBDA, whiten=False)[0], plain[0])
    for x in tokens.gae(rewards, values, 0 * ones, GAMMA, LAMBDA):
        assert not x.any()
    single = np.zeros_like(rewards)
    single[2, 3] = 1
    assert not tokens.gae(rewards, values, single, GAMMA, LAMBDA).advantages.any()  # row R12; verl raises here


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    rewards, values, mask = (torch.from_numpy(x) for x in batch(3, "holes"))
    result = tokens.gae(rewards.to(dtype), values.to(dtype), mask.long(), torch.tensor(GAMMA), LAMBDA, whiten=False)
    assert {x.dtype for x in result} == {dtype}
    expected = naive(
        rewards.to(dtype).double().numpy(), values.to(dtype).double().numpy(), mask.numpy(), GAMMA, LAMBDA, False
    )
    error = np.abs(result.advantages.double().numpy() - expected[0]).max()
    assert error <= 4 * torch.finfo(dtype).eps * np.abs(expected[0]).max()


def test_errors() -> None:
    rewards, values, mask = batch(0, "holes")
    with pytest.raises(ValueError, match="mask"):
        tokens.gae(rewards, values, mask[:, 1:], GAMMA, LAMBDA)
    with pytest.raises(ValueError, match="gamma"):
        tokens.gae(rewards, values, mask, 1.5, LAMBDA)
    with pytest.raises(TypeError):
        tokens.gae(torch.from_numpy(rewards), values, torch.from_numpy(mask), GAMMA, LAMBDA)


def verl(name: str, file: str, names: dict[str, Any]) -> Any:
    try:
        return sources.execute(sources.functions(sources.parse("verl", file), name), names)[name]
    except (ImportError, FileNotFoundError, LookupError) as reason:
        pytest.skip(f"verl: {reason}: pip install --no-deps verl")


def verl_namespace() -> SimpleNamespace:
    helpers = ("masked_sum", "masked_mean", "masked_var", "masked_whiten")
    names: dict[str, Any] = {"torch": torch}
    for name in helpers:
        verl(name, "utils/torch_functional.py", names)
    function = verl(
        "compute_gae_advantage_return",
        "trainer/ppo/core_algos.py",
        {"torch": torch, "verl_F": SimpleNamespace(**{name: names[name] for name in helpers})},
    )
    return SimpleNamespace(compute_gae_advantage_return=function)


@pytest.mark.parametrize("kind", ["responses", "holes"])
def test_verl(kind: str) -> None:
    """Its own function's text, on valid tokens; masked ones hold whatever there."""
    function = verl_namespace().compute_gae_advantage_return
    for seed in range(20):
        rewards, values, mask = (torch.from_numpy(x) for x in batch(seed, kind))
        theirs = function(rewards, values, mask.long(), GAMMA, LAMBDA)
        ours = tokens.gae(rewards, values, mask.long(), GAMMA, LAMBDA)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine[mask], other[mask], rtol=1e-6, atol=1e-7)


def test_verls_trainer_calls_it() -> None:
    """The assignment of the README, and the text of the trainer's own `compute_advantage`."""
    core_algos = verl_namespace()
    estimator = SimpleNamespace(GAE="gae", GRPO="grpo")
    names = {"core_algos": core_algos, "AdvantageEstimator": estimator, "DataProto": object, "AlgoConfig": object,
             "Optional": dict, "compute_response_mask": None}  # fmt: skip
    try:
        compute = verl("compute_advantage", "trainer/ppo/ray_trainer.py", names)
    except NameError as reason:
        pytest.skip(f"verl: its trainer has changed: {reason}")
    rewards, values, mask = (torch.from_numpy(x) for x in batch(5, "holes"))

    class Config(dict[str, Any]):
        pass

    def run() -> dict[str, Any]:
        data = SimpleNamespace(batch={"token_level_rewards": rewards, "values": values, "response_mask": mask.long()})
        compute(data, "gae", gamma=GAMMA, lam=LAMBDA, config=Config())
        return data.batch

    before = run()
    core_algos.compute_gae_advantage_return = tokens.gae
    after = run()
    assert not after["advantages"][~mask].any()
    for key in ("advantages", "returns"):
        torch.testing.assert_close(after[key][mask], before[key][mask], rtol=1e-6, atol=1e-7)


def test_trl() -> None:
    """Part 6 of `PPOTrainer.train` as it stands: a score lies one token behind the last, where V is read, too."""
    try:
        tree = sources.parse("trl", "experimental/ppo/ppo_trainer.py")
        names = sources.execute(sources.functions(tree, "masked_mean", "masked_var", "masked_whiten"), {"torch": torch})
        body = sources.between(tree, "lastgaelam = 0", "advantages = torch.masked_fill")
    except (ImportError, FileNotFoundError, LookupError) as reason:
        pytest.skip(f'trl: {reason}: pip install --no-deps "trl<1.13"')
    loop = sources.as_function(body, "rewards, values, responses, padding_mask, args", "advantages, returns", names)
    args = SimpleNamespace(gamma=GAMMA, lam=LAMBDA)
    for seed in range(20):
        rewards, values, mask = (torch.from_numpy(x) for x in batch(seed, "responses"))
        length = rewards.shape[1]
        sequence_lengths = mask.sum(1) - 1  # the last token's place, as there
        places = torch.arange(length).expand_as(mask)
        padding_mask, padding_mask_p1 = places > sequence_lengths[:, None], places > sequence_lengths[:, None] + 1
        scored = torch.where(sequence_lengths + 1 < length, sequence_lengths + 1, sequence_lengths)
        rewards[torch.arange(len(rewards)), scored] += 1.0
        values = values.masked_fill(padding_mask_p1, 0)
        theirs = loop(rewards, values, values, padding_mask, args)
        ours = tokens.gae(rewards, values, ~padding_mask_p1, args.gamma, args.lam, whiten=~padding_mask)
        torch.testing.assert_close(ours.advantages, theirs[0], rtol=1e-6, atol=1e-7)
        valid = ~padding_mask_p1
        torch.testing.assert_close(ours.returns[valid], theirs[1][valid])


def test_openrlhf() -> None:
    """Its `get_advantages_and_returns`, as documented: rewards and values times the mask, then a plain loop.

    On masks without holes; over a hole it discounts.
    """
    for seed in range(20):
        rewards, values, mask = batch(seed, "responses")
        kept_rewards, kept_values = rewards * mask, values * mask
        advantages, carry, after = np.zeros(rewards.shape), np.zeros(len(rewards)), np.zeros(len(rewards))
        for t in reversed(range(rewards.shape[1])):
            carry = kept_rewards[:, t] + GAMMA * after - kept_values[:, t] + GAMMA * LAMBDA * carry
            advantages[:, t], after = carry, kept_values[:, t]
        ours = tokens.gae(rewards, values, mask, GAMMA, LAMBDA, whiten=False)
        np.testing.assert_allclose(ours.advantages[mask], advantages[mask], atol=1e-10)
        np.testing.assert_allclose(ours.returns[mask], (advantages + kept_values)[mask], atol=1e-10)
