"""docs/recipes.md: every block runs and gives the library's own numbers; what is not installed skips and says so."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fresh import ROOT

import fastac

TEXT = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = {
    name: code for name, code in re.findall(r"^```python\n# recipe: (\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
}
INSTALL = {
    "rsl_rl": "pip install rsl-rl-lib",
    "skrl": "pip install skrl",
    "rl_games": "pip install rl-games",
    "rllib": 'pip install "ray[rllib]"',
}
T, N = 24, 5
GAMMA, LAMBDA = 0.97, 0.9


def recipe(name: str, monkeypatch: pytest.MonkeyPatch, module: str, attribute: str) -> tuple[dict[str, Any], Any]:
    """The block's names, and the library's own function; what the block replaces is put back after the test."""
    try:
        owner: Any = __import__(module.partition(":")[0], fromlist=["x"])
    except ImportError as error:
        pytest.skip(f"{error}: {INSTALL[name]}")
    owner = getattr(owner, module.partition(":")[2]) if ":" in module else owner
    theirs = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, theirs)
    names: dict[str, Any] = {}
    exec(BLOCKS[name], names)
    return names, theirs


def arrays(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(T, N, 1, generator=generator) for name in ("rewards", "values")}
    flags = {name: torch.rand(T, N, 1, generator=generator) < 0.1 for name in ("terminated", "truncated")}
    return made | flags | {"last": torch.randn(N, 1, generator=generator)}


def close(mine: Any, other: Any) -> None:
    np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=1e-4, atol=1e-5)


def test_there_is_one_for_each() -> None:
    assert set(BLOCKS) == set(INSTALL)


@pytest.mark.parametrize("normalized", [False, True])
def test_rsl_rl(normalized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names, theirs = recipe("rsl_rl", monkeypatch, "rsl_rl.algorithms:PPO", "compute_returns")
    found = []
    for function in (theirs, names["FastPPO"].compute_returns):
        data = arrays(0)
        storage = SimpleNamespace(
            rewards=data["rewards"], values=data["values"], num_transitions_per_env=T,
            dones=(data["terminated"] | data["truncated"]).byte(),
            returns=torch.zeros(T, N, 1), advantages=torch.zeros(T, N, 1),
        )  # fmt: skip

        class Critic:
            def __init__(self, last: torch.Tensor) -> None:
                self.last = last

            def __call__(self, _: Any) -> torch.Tensor:
                return self.last

            def get_hidden_state(self) -> None:
                return None

            def reset(self, hidden_state: Any = None) -> None:
                return None

        trainer = SimpleNamespace(
            storage=storage, critic=Critic(data["last"]), gamma=GAMMA, lam=LAMBDA,
            normalize_advantage_per_mini_batch=not normalized,
        )  # fmt: skip
        function(trainer, None)
        found.append(storage)
    assert found[1].advantages.shape == found[0].advantages.shape
    close(found[1].advantages, found[0].advantages)
    close(found[1].returns, found[0].returns)


def test_skrl(monkeypatch: pytest.MonkeyPatch) -> None:
    names, theirs = recipe("skrl", monkeypatch, "skrl.agents.torch.ppo.ppo", "compute_gae")
    data = arrays(1)
    given = {key: data[key] for key in ("rewards", "terminated", "truncated", "values")} | {
        "last_values": data["last"], "discount_factor": GAMMA, "lambda_coefficient": LAMBDA,
    }  # fmt: skip
    for mine, other in zip(
        names["compute_gae"](**given, time_limit_bootstrap=True),
        theirs(**given, time_limit_bootstrap=True),
        strict=True,
    ):
        close(mine, other)
    # Row R2: without the option, skrl's trace runs on into the next episode.
    assert not np.allclose(names["compute_gae"](**given)[0], theirs(**given)[0], atol=1e-3)
    given["truncated"] = torch.zeros_like(given["truncated"])
    for mine, other in zip(names["compute_gae"](**given), theirs(**given), strict=True):
        close(mine, other)


def test_rl_games(monkeypatch: pytest.MonkeyPatch) -> None:
    names, theirs = recipe("rl_games", monkeypatch, "rl_games.common.a2c_common:A2CBase", "discount_values")
    data = arrays(2)
    starts = data["terminated"][..., 0].float()
    trainer = SimpleNamespace(horizon_length=T, gamma=GAMMA, tau=LAMBDA)
    given = (trainer, data["truncated"][0, :, 0].float(), data["last"], starts, data["values"], data["rewards"])
    mine, other = names["discount_values"](*given), theirs(*given)
    assert mine.shape == other.shape
    close(mine, other)


@pytest.mark.parametrize("added_rows_cut", [False, True])
def test_rllib(added_rows_cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes one after the other, each longer by the row that the connector adds: both right at time limits."""
    module = "ray.rllib.connectors.learner.general_advantage_estimation"
    names, theirs = recipe("rllib", monkeypatch, module, "compute_value_targets")
    generator = np.random.default_rng(3)
    values, rewards = generator.standard_normal((2, 60)).astype(np.float32)
    terminateds, truncateds, added = np.zeros((3, 60), bool)
    terminateds[[10, 33]] = True
    truncateds[[20, 45, 58]] = True
    added[[11, 21, 34, 46, 59]] = True
    flags = terminateds, truncateds | (added & added_rows_cut)
    mine = names["compute_value_targets"](values, rewards, *flags, GAMMA, LAMBDA)
    close(mine, theirs(values, rewards, *flags, GAMMA, LAMBDA))
    # Row R1. Without the added rows: the next row's V is that of the observation before any reset.
    real = ~added
    following = np.append(values[1:], np.float32(0))[real]
    arrays = rewards[real], values[real], following, terminateds[real], truncateds[real]
    close(mine[real], fastac.gae(*arrays, gamma=GAMMA, gae_lambda=LAMBDA).returns)


def test_what_v_of_the_state_before_costs_at_a_time_limit() -> None:
    """Row R3, and the sentence of the recipes: the row is off by gamma (V(s_t) - V(s_{t+1})), those before by less."""
    generator = np.random.default_rng(4)
    rewards, values = generator.standard_normal((2, 10))
    cut = np.zeros(10, bool)
    cut[6] = True
    next_values = np.append(values[1:], 0.3)
    next_values[6] = final = 1.7
    right = fastac.gae(rewards, values, next_values, None, cut, gamma=GAMMA, gae_lambda=LAMBDA).advantages
    folded = np.where(cut, rewards + GAMMA * values, rewards)
    theirs = fastac.gae(folded, values, np.array(0.3), cut, gamma=GAMMA, gae_lambda=LAMBDA).advantages
    error = GAMMA * (values[6] - final)
    close(theirs - right, [error * (GAMMA * LAMBDA) ** (6 - t) if t <= 6 else 0.0 for t in range(10)])
