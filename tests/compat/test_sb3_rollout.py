"""The rollout buffers of the Stable-Baselines3 door, against Stable-Baselines3's own."""

import copy
import pickle

import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: no door to try")

from gymnasium import spaces  # noqa: E402
from stable_baselines3.common import buffers as theirs  # noqa: E402

from fastac.compat import sb3 as ours  # noqa: E402
from fastac.conformance import check  # noqa: E402

BOX = spaces.Box(-1.0, 1.0, (3,))
DICT = spaces.Dict({"a": BOX, "b": spaces.Box(0, 255, (2, 2), np.uint8), "c": spaces.Discrete(5)})


def fill(buffer, steps, envs, seed=0, ends=0.1):
    """Random steps; the same for the same seed."""
    rng = np.random.default_rng(seed)
    buffer.reset()
    for _ in range(steps):
        space = buffer.observation_space
        space.seed(int(rng.integers(1 << 30)))
        rows = [space.sample() for _ in range(envs)]
        obs = {k: np.stack([r[k] for r in rows]) for k in rows[0]} if isinstance(rows[0], dict) else np.stack(rows)
        buffer.action_space.seed(int(rng.integers(1 << 30)))
        action = np.stack([buffer.action_space.sample() for _ in range(envs)])
        values, log_probs = (torch.from_numpy(rng.normal(size=envs).astype(np.float32)) for _ in range(2))
        buffer.add(obs, action, rng.normal(size=envs), rng.random(envs) < ends, values[:, None], log_probs)
    buffer.compute_returns_and_advantage(
        torch.from_numpy(rng.normal(size=(envs, 1)).astype(np.float32)), rng.random(envs) < 0.5
    )
    return buffer


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (16, 1), (64, 5), (33, 16)])
def test_advantages_and_returns_are_theirs(steps: int, envs: int, gae_lambda: float) -> None:
    """R16: `episode_starts[t]` belongs to the start of step t."""
    pair = [
        fill(kind(steps, BOX, spaces.Discrete(4), "cpu", gae_lambda, 0.97, envs), steps, envs)
        for kind in (ours.RolloutBuffer, theirs.RolloutBuffer)
    ]
    for name in ("advantages", "returns"):
        own, other = (getattr(buffer, name) for buffer in pair)
        assert own.shape == other.shape
        assert own.dtype == other.dtype
        np.testing.assert_allclose(own, other, rtol=0, atol=2e-6 * np.abs(other).max())


def test_every_boundary_of_the_conformance_suite() -> None:
    """The suite's own adapter of Stable-Baselines3's convention, with our class where it has theirs."""
    report = check(ours.RolloutBuffer, "sb3")
    assert report.ok, report
    assert report.cannot_say == check(theirs.RolloutBuffer, "sb3").cannot_say


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(4), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3), BOX,
        spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    ],
    ids=["discrete", "multidiscrete", "multibinary", "box", "float64"],
)  # fmt: skip
@pytest.mark.parametrize("space", [BOX, spaces.Box(0, 255, (3, 4, 4), np.uint8), spaces.Discrete(7), DICT], ids=str)
@pytest.mark.parametrize("batch_size", [None, 7])
def test_minibatches_hold_every_transition_once(space, action_space, batch_size) -> None:
    steps, envs = 6, 3
    is_dict = isinstance(space, spaces.Dict)
    kinds = [getattr(module, "DictRolloutBuffer" if is_dict else "RolloutBuffer") for module in (ours, theirs)]
    assert issubclass(*kinds)
    own, other = (fill(kind(steps, space, action_space, "cpu", 0.9, 0.97, envs), steps, envs) for kind in kinds)
    before = copy.deepcopy(own)
    batches, others = list(own.get(batch_size)), list(other.get(batch_size))
    assert [len(b.actions) for b in batches] == [len(b.actions) for b in others]
    assert type(batches[0]) is type(others[0])
    for name in ("observations", "actions", "values", "advantages"):  # theirs are flat by now
        now, then = (x if isinstance(x, dict) else {"": x} for x in (getattr(own, name), getattr(before, name)))
        for key in now:
            np.testing.assert_array_equal(now[key], then[key])

    def sorted_rows(found):
        fields = []
        for name in found[0]._fields:
            parts = [getattr(batch, name) for batch in found]
            for key in parts[0] if isinstance(parts[0], dict) else [None]:
                tensors = [part if key is None else part[key] for part in parts]
                fields.append(torch.cat(tensors))
        order = torch.argsort(fields[-3])  # log-probabilities are all different
        return [(x.dtype, x[order]) for x in fields]

    for (dtype, rows), (their_dtype, their_rows) in zip(sorted_rows(batches), sorted_rows(others), strict=True):
        assert dtype == their_dtype
        torch.testing.assert_close(rows, their_rows, rtol=0, atol=1e-5)


def test_two_epochs_differ_and_a_seed_repeats_them() -> None:
    """B13: a generator of its own."""

    def epochs(seed):
        np.random.seed(seed)  # noqa: NPY002 as set_random_seed does
        buffer = fill(ours.RolloutBuffer(8, BOX, BOX, "cpu", 0.9, 0.9, 2), 8, 2)
        np.random.random(3)  # noqa: NPY002 somebody else's draws
        return [torch.cat([b.advantages for b in buffer.get(4)]).tolist() for _ in range(2)]

    first, again, other = epochs(0), epochs(0), epochs(1)
    assert first == again
    assert first[0] != first[1]
    assert first != other


def test_a_copy_goes_on_alike() -> None:
    buffer = fill(ours.RolloutBuffer(8, BOX, BOX, "cpu", 0.9, 0.9, 2), 8, 2)
    twins = [buffer, copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))]
    epochs = [torch.cat([b.observations for b in twin.get(4)]) for twin in twins]
    assert torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


def test_a_rollout_that_is_not_full_is_refused() -> None:
    with pytest.raises(AssertionError, match="not full"):
        next(ours.RolloutBuffer(8, BOX, BOX, "cpu").get(4))


def test_ppo_takes_the_steps_that_it_takes_with_their_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, minibatches in the same order: the same parameters."""
    monkeypatch.setattr(np.random, "permutation", np.arange)

    class InTurn(ours.RolloutBuffer):
        def get(self, batch_size=None):
            # Theirs has one environment after the other.
            order = np.arange(self.buffer_size * self.n_envs).reshape(self.buffer_size, self.n_envs).T.reshape(-1)
            self._generator = type("InOrder", (), {"permutation": staticmethod(lambda rows: order)})
            return super().get(batch_size)

    from stable_baselines3.common.env_util import make_vec_env

    def trained(kind):
        envs = make_vec_env("CartPole-v1", n_envs=4, seed=0)
        options = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
        np.random.seed(0)  # noqa: NPY002
        model = sb3.PPO("MlpPolicy", envs, rollout_buffer_class=kind, policy_kwargs={"net_arch": [8]}, **options)
        return model.learn(256).policy.parameters()

    for own, other in zip(trained(InTurn), trained(None), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_rollout_buffer_kwargs_are_the_buffers() -> None:
    model = sb3.A2C(
        "MlpPolicy", "CartPole-v1", rollout_buffer_class=ours.RolloutBuffer, rollout_buffer_kwargs={"seed": 3}
    )
    assert type(model.rollout_buffer) is ours.RolloutBuffer
    with pytest.raises(TypeError, match="unexpected keyword argument 'shuffle'"):
        sb3.A2C(
            "MlpPolicy", "CartPole-v1", rollout_buffer_class=ours.RolloutBuffer, rollout_buffer_kwargs={"shuffle": 1}
        )
