"""`fastac export`: the file alone does what the policy does."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import torch
from fresh import run_python
from gymnasium.spaces import Box, Discrete

from fastac import checkpoint
from fastac.__main__ import main
from fastac.algorithms import ALGORITHMS
from fastac.export import METADATA, export
from fastac.networks import make_actor, make_tanh_actor, make_tanh_gaussian_actor
from fastac.normalize import ObservationNormalizer
from fastac.policy import Policy
from fastac.policy import load as load_policy
from fastac.run import RunError

FLAT, DOUBLE = Box(-np.inf, np.inf, (3,), np.float32), Box(-10, 10, (3,), np.float64)
IMAGES = Box(0, 255, (36, 40, 2), np.uint8)
UNEVEN = Box(np.array([-1.0, 0.5], np.float32), np.array([2.0, 0.75], np.float32))
POLICIES = {
    "discrete": (FLAT, Discrete(4, start=-2), make_actor, True),
    "images": (IMAGES, Discrete(3), make_actor, False),
    "gaussian": (DOUBLE, Box(-0.1, 0.1, (2, 1), np.float32), make_actor, True),
    "tanh-gaussian": (DOUBLE, UNEVEN, make_tanh_gaussian_actor, True),
    "tanh": (FLAT, Box(-3, 3, (1, 2), np.float64), make_tanh_actor, False),
    "images to a box": (IMAGES, UNEVEN, make_tanh_gaussian_actor, False),
}
SIZES = (1, 2, 5, 1025)

# Runs every file in the folder on the observations beside it.
ALONE = """
import pathlib, sys
import torch
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.pt2")):
    module = torch.export.load(path).module()
    observations = torch.load(path.with_suffix(".in"))
    actions = [module(x) for x in observations]
    assert not any(x.requires_grad for x in actions)
    torch.save(actions, path.with_suffix(".out"))
ours = {name.partition(".")[0] for name in sys.modules} & {"fastac", "fastac_kernels", "numba", "gymnasium"}
assert not ours, ours
"""


def observations_of(space, generator):
    shape = (sum(SIZES), *space.shape)
    if space.dtype == np.uint8:
        return generator.integers(0, 256, shape, np.uint8)
    return (3.0 * generator.normal(size=shape) + 1.0).astype(space.dtype)


def run_alone(policies, folder):
    """Exports all, runs the files in a process that imports torch only; yields inputs and outputs, for every size."""
    generator, batches = np.random.default_rng(0), {}
    for name, policy in policies.items():
        export(policy, folder / f"{name}.pt2")
        everything = torch.from_numpy(observations_of(policy.observation_space, generator))
        batches[name] = list(torch.split(everything, SIZES))
        torch.save(batches[name], folder / f"{name}.in")
    run_python(ALONE, str(folder), path="", cwd=folder)
    for name in policies:
        yield name, batches[name], torch.load(folder / f"{name}.out")


def assert_acts_like(policy, batches, outputs):
    for observations, actions in zip(batches, outputs, strict=True):
        expected = policy.act(observations.numpy())
        assert actions.numpy().dtype == expected.dtype
        assert actions.shape == expected.shape
        if isinstance(policy.action_space, Discrete):
            # Rounding may decide where two actions are as probable.
            with torch.no_grad():
                logits = policy.actor.network(torch.from_numpy(policy.observe(observations.numpy())))
            best = logits.topk(2).values
            clear = (best[:, 0] - best[:, 1] > 1e-5).numpy()
            assert clear.mean() > 0.9
            assert np.array_equal(actions.numpy()[clear], expected[clear])
        else:
            np.testing.assert_allclose(actions.numpy(), expected, rtol=1e-5, atol=2e-5)


def made(observation_space, action_space, make, normalized):
    normalizer = None
    if normalized:
        normalizer = ObservationNormalizer(observation_space.shape, clip=1.5)
        normalizer.update(np.random.default_rng(1).normal([1.0, -50.0, 0.0], [2.0, 30.0, 1e-3], (500, 3)))
    actor = make(observation_space, action_space, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        list(actor.network.parameters())[-2].mul_(30.0)  # actions that differ, and reach the bounds
    return Policy(actor, observation_space, action_space, observation_normalizer=normalizer)


def test_the_file_alone_acts_like_the_policy(tmp_path):
    """Normalisation, bounds, scaling, a Discrete's start, images; any batch size, batches larger than one pass too."""
    policies = {name: made(*entry) for name, entry in POLICIES.items()}
    for name, batches, outputs in run_alone(policies, tmp_path):
        assert_acts_like(policies[name], batches, outputs)
        varied = torch.cat(outputs).double().reshape(sum(SIZES), -1)
        assert (varied.std(0) > 0).any(), name


def tiny(algorithm, env_id):
    """A short training's options, whatever the algorithm calls them."""
    module = importlib.import_module(f"fastac.algorithms.{algorithm}")
    wanted = {
        "env_id": env_id, "total_timesteps": 128, "num_envs": 2, "num_steps": 32, "learning_starts": 96,
        "batch_size": 16, "buffer_size": 500, "hidden_sizes": (8,), "normalize_observations": True, "num_episodes": 2,
    }  # fmt: skip
    names = {field.name for field in dataclasses.fields(module.Config)}
    return module, module.Config(**{name: value for name, value in wanted.items() if name in names})


def test_a_trained_policy_of_every_algorithm_is_exported(tmp_path):
    """From its run's folder, with the statistics that it was trained with."""
    policies = {}
    for algorithm in ALGORITHMS:
        module, config = tiny(algorithm, "Pendulum-v1")
        if getattr(module, "TRAINS_A_POLICY", True):
            run = tmp_path / f"run-{algorithm}"
            module.train(config, run_dir=run)
            policies[algorithm] = load_policy(run)
            assert policies[algorithm].observation_normalizer is not None
    assert len(policies) >= 8
    for name, batches, outputs in run_alone(policies, tmp_path):
        assert_acts_like(policies[name], batches, outputs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    module, config = tiny("ppo", "CartPole-v1")
    module.train(config, run_dir=folder)
    return folder


def test_the_command(run, tmp_path, capsys):
    out = tmp_path / "policy.pt2"
    assert main(["export", str(run), str(out)]) == 0
    said = capsys.readouterr().out
    assert "observations (B, 4) float32 of CartPole-v1 to actions (B) int64" in said
    extra = {METADATA: ""}
    module = torch.export.load(out, extra_files=extra).module()
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(module(torch.from_numpy(observations)), load_policy(run).act(observations))
    description = json.loads(extra[METADATA])
    assert description["env_id"] == "CartPole-v1"
    assert description["observations"] == {"shape": [4], "dtype": "float32"}
    assert description["versions"]["torch"] == torch.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt2"]

    first = out.read_bytes()
    assert main(["export", str(run), str(out)]) == 2
    error = capsys.readouterr().err
    assert error == f"fastac export: {out}: exists; --overwrite replaces it\n"
    assert out.read_bytes() == first
    out.write_bytes(b"old")
    assert main(["export", str(run), str(out), "--overwrite"]) == 0
    assert out.read_bytes() != b"old"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("run_name", "out", "message"),
    [
        ("run", "policy.onnx", "expected a name that ends in .pt2"),
        ("run", "nowhere/policy.pt2", "its folder does not exist"),
        ("run", "folder.pt2", "is a folder"),
        ("nothing", "policy.pt2", "cannot read checkpoint"),
        ("plain", "policy.pt2", "no policy in this checkpoint"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, capsys, run_name, out, message):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "plain").mkdir()
    checkpoint.save(tmp_path / "plain" / "checkpoint.pt", {"weights": 1})
    source = run if run_name == "run" else tmp_path / run_name
    assert main(["export", str(source), str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.pt2", "plain"]


def test_a_file_that_cannot_be_written_leaves_nothing(monkeypatch, tmp_path):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(RunError, match="No space left on device"):
        export(made(*POLICIES["discrete"]), tmp_path / "policy.pt2")
    assert list(tmp_path.iterdir()) == []
