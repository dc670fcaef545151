"""CUDA graphs of updates: what a graph would be given, on the CPU, gives the eager update's parameters.

Whether a graph replays what was captured can be seen on a device only (`pytest -m cuda`).
"""

import contextlib
import importlib
import inspect
import math
from typing import Any, NamedTuple

import pytest
import torch
from nothing_read import NothingRead

from fastac import graphs
from fastac.capturable import CapturableAdam
from fastac.graphs import GraphedUpdate

CPU = torch.device("cpu")
REPLAY: dict[str, Any] = {"env_id": "Pendulum-v1", "batch_size": 16, "hidden_sizes": (8,), "buffer_size": 200}
ROLLOUT: dict[str, Any] = {"env_id": "CartPole-v1", "num_envs": 2, "num_steps": 16, "hidden_sizes": (8,)}
# An agent's options, with the kinds of calls that its updates have, one number for each function that is captured.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "ppo": (ROLLOUT | {"anneal_clip": True, "target_kl": 10.0}, (1,)),
    "actor_critic": (ROLLOUT | {"anneal_lr": True}, (1, 0)),
    "actor_critic-batch": (ROLLOUT | {"optimizer": "adam", "critic_steps": 3}, (1, 1)),
    "actor_critic-box": (ROLLOUT | {"env_id": "Pendulum-v1", "norm_adv": True}, (1, 0)),
    "importance_weighted": (ROLLOUT | {"anneal_lr": True, "importance_weights": "per_decision"}, (1,)),
    "importance_weighted-box": (ROLLOUT | {"env_id": "Pendulum-v1", "target_kl": 1e-3}, (1,)),
    "importance_weighted-stop": (ROLLOUT | {"constraint": "stop", "target_kl": 1e-4}, (2,)),
    "trpo": (ROLLOUT | {"num_minibatches": 2, "target_kl": 0.1}, (1, 1)),
    "sac": (REPLAY | {"anneal_lr": True}, (2,)),
    "td3": (REPLAY | {"anneal_lr": True}, (2,)),
    "ddpg": (REPLAY | {"policy_frequency": 2}, (2,)),
    "off_policy": (REPLAY | {"env_id": "CartPole-v1", "anneal_lr": True}, (1,)),
    "off_policy-sum": (REPLAY | {"env_id": "CartPole-v1", "gradient": "expectation"}, (1,)),
    "off_policy-box": (REPLAY | {"num_action_samples": 3}, (1,)),
    "off_policy-through-q": (REPLAY | {"gradient": "reparameterized"}, (1,)),
    "off_policy-actions": (REPLAY | {"version": "actions-of-the-buffer"}, (1,)),
    "off_policy-values": (REPLAY | {"version": "values-of-the-buffer"}, (1,)),
}
CLASSES = {"actor_critic": "ActorCritic", "importance_weighted": "ImportanceWeighted", "off_policy": "OffPolicy"}
CAPTURED = ("learn", "find_step", "learn_values")


def agent(name: str, **more: Any) -> Any:
    algorithm = name.split("-")[0]
    module = importlib.import_module(f"fastac.algorithms.{algorithm}")
    made = getattr(module, CLASSES.get(algorithm, algorithm.upper()))(module.Config(**SMALL[name][0], **more))
    if hasattr(made, "experience"):
        for _ in range(60):
            made.experience.step(made.experience.random_actions())
    return made


def close(made: Any) -> None:
    (made.experience if hasattr(made, "experience") else made.collector).close()


def captured(made: Any) -> dict[str, Any]:
    """The functions that a graph holds where there is a device."""
    return {key: vars(made)[key] for key in CAPTURED if key in vars(made)}


def in_static_buffers(made: Any) -> Any:
    for key, function in captured(made).items():
        setattr(made, key, GraphedUpdate(function, CPU))
    return made


def update(made: Any, remaining: float = 1.0) -> None:
    if hasattr(made, "experience"):
        made.anneal(remaining)
        made.update()
        return
    if hasattr(made, "fit"):
        made.anneal(remaining)
        made.fit()
        made.estimate()
        made.update()
        return
    made.estimate()
    if hasattr(made, "update_actor"):
        made.update_actor()
        made.update_critic()
    else:
        made.update(remaining)


def learn(made: Any, updates: int) -> None:
    for k in range(updates):
        if hasattr(made, "collector"):
            made.collector.collect()
        update(made, 1.0 - k / updates)


def parameters(made: Any) -> dict[str, torch.Tensor]:
    modules = {key: x for key, x in vars(made).items() if isinstance(x, torch.nn.Module)}
    targets = {key: made.__dict__[key].network for key in ("target", "target_actor") if key in made.__dict__}
    found = {f"{key}.{n}": p for key, m in {**modules, **targets}.items() for n, p in m.state_dict().items()}
    return found | ({"log_alpha": made.log_alpha.detach()} if hasattr(made, "log_alpha") else {})


@pytest.mark.parametrize("name", SMALL)
def test_the_static_form_gives_the_eager_updates_parameters(name: str) -> None:
    """Copied into static buffers, numbers as tensors: the same parameters, bit for bit."""
    eager, static = agent(name), in_static_buffers(agent(name))
    before = {key: value.clone() for key, value in parameters(eager).items()}
    learn(eager, 6), learn(static, 6)
    assert tuple(len(function._kinds) for function in captured(static).values()) == SMALL[name][1]
    first, second = parameters(eager), parameters(static)
    assert any(not torch.equal(value, before[key]) for key, value in first.items())
    assert len(first) >= 4
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    close(eager), close(static)


@pytest.mark.parametrize("name", SMALL)
def test_a11_an_update_reads_nothing_back(name: str) -> None:
    """Row A11, of the torch operations that CUDA tensors take: what is captured may not look at a value.

    Nor may it draw: a graph would go on with the noise that it was captured with.
    """
    made, heard = agent(name), set()
    if name == "importance_weighted-stop":  # the CPU's Adam reads its step counts where some gradients are missing
        made.optimizer = CapturableAdam(made.parameters)

    source = made.experience if hasattr(made, "experience") else made.collector

    def listened(key: str, function: Any) -> Any:
        def run(*arguments: Any) -> Any:
            heard.add(key)
            before = source.generator.get_state(), torch.get_rng_state()
            with NothingRead():
                found = function(*graphs._mapped(arguments, lambda x: torch.tensor(x) if type(x) is float else x))
            assert torch.equal(before[0], source.generator.get_state())
            assert torch.equal(before[1], torch.get_rng_state())
            return found

        return run

    for key, function in captured(made).items():
        setattr(made, key, listened(key, function))
    learn(made, 2)
    assert len(heard) == sum(kinds > 0 for kinds in SMALL[name][1])
    close(made)


@pytest.mark.parametrize("name", [name for name in SMALL if "-" not in name])
def test_loading_a_state_forgets_the_graphs(name: str) -> None:
    """What they read and wrote are other tensors then."""
    made = in_static_buffers(agent(name))
    learn(made, 1)
    assert any(function._kinds for function in captured(made).values())
    made.load_state_dict(made.state_dict())
    assert not any(function._kinds for function in captured(made).values())
    close(made)


COMPILED = [name for name in SMALL if name not in ("off_policy-actions", "off_policy-values")]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_updates_give_the_eager_updates_parameters(name: str) -> None:
    """`--compile`, on the CPU: to rounding, after a few updates."""
    torch._dynamo.reset()
    eager, compiled = agent(name), agent(name, compile=True)
    assert not any(inspect.ismethod(function) for key, function in captured(compiled).items() if key != "find_step")
    learn(eager, 3), learn(compiled, 3)
    second = parameters(compiled)
    for key, value in parameters(eager).items():
        torch.testing.assert_close(value, second[key], rtol=1e-3, atol=1e-4)
    close(eager), close(compiled)
    torch._dynamo.reset()


class Pair(NamedTuple):
    first: torch.Tensor
    others: dict[str, Any]


def test_kinds_of_calls() -> None:
    """Shapes, dtypes and constants make a kind; numbers do not; beyond the most kinds the function runs as it is."""
    seen: list[Any] = []

    def function(pair: Pair, number: Any, constant: Any) -> Any:
        seen.append((pair.first, number))
        return {"sum": pair.first.sum() * number + pair.others["x"], "none": None, "constant": constant}

    update = GraphedUpdate(function, CPU, max_graphs=3)
    for k, (size, constant) in enumerate([(2, True), (2, True), (2, False), (3, True), (4, True), (2, None)]):
        result = update(Pair(torch.ones(size), {"x": torch.tensor(1.0)}), 0.5 + k, constant)
        assert result["sum"] == size * (0.5 + k) + 1
        assert result["constant"] is constant
    assert len(update._kinds) == 3
    assert seen[0][0] is seen[1][0]
    assert seen[0][0] is not seen[2][0]
    assert [type(number) for _, number in seen] == [torch.Tensor] * 4 + [float] * 2
    update.reset()
    assert not update._kinds


def test_results_are_not_overwritten_and_inputs_need_no_gradient() -> None:
    update = GraphedUpdate(lambda x: x, CPU)
    first = update(torch.ones(2, requires_grad=True))
    update(torch.zeros(2))
    assert torch.equal(first, torch.ones(2))
    assert not first.requires_grad


class FakeCuda:
    """Streams that do nothing, and a graph whose replay runs what was captured again, into the same results."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: Any, function: Any):
        self.events: list[str] = []
        outer = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                outer.events.append("wait")

        class Graph:
            def replay(self) -> None:
                outer.events.append("replay")
                kind.results.copy_(function(*kind.arguments))

        @contextlib.contextmanager
        def graph(graph: Any, stream: Any) -> Any:
            outer.events.append("capture")
            yield

        for name, value in {"CUDAGraph": Graph, "graph": graph, "current_stream": lambda device: Stream(),
                            "stream": contextlib.nullcontext}.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        kind.device, kind.stream = torch.device("cuda"), Stream()


def test_warm_up_then_capture_then_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call but the capture itself is an update; Python runs the function while it warms up and once more."""
    calls = []

    def function(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * 2

    arguments = (torch.ones(2),)
    kind = graphs._Kind(arguments, CPU)
    fake = FakeCuda(monkeypatch, kind, function)
    for k in range(6):
        kind.buffers[0].fill_(k)
        assert torch.equal(kind.run(function, 3), torch.full((2,), 2.0 * k))
    assert fake.events == ["wait"] * 6 + ["capture", "replay", "replay", "replay"]
    assert len(calls) == 3 + 1 + 3


def test_what_cannot_be_captured_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = graphs._Kind((torch.ones(1),), CPU)

    def function(x: torch.Tensor) -> torch.Tensor:
        if kind.runs:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return x

    FakeCuda(monkeypatch, kind, function)
    kind.runs = 3
    with pytest.raises(RuntimeError, match=r"stream is capturing\); without one: cudagraphs=False"):
        kind.run(function, 3)


def test_on_the_cpu_there_is_nothing_to_capture() -> None:
    assert graphs.on_device(abs, CPU, cudagraphs=True, compile=False) is abs
    compiled = graphs.on_device(torch.sin, CPU, cudagraphs=True, compile=True)
    assert compiled is not torch.sin
    graphs.reset(compiled)
    with pytest.raises(ValueError, match="warm_up: got 0"):
        GraphedUpdate(abs, CPU, warm_up=0)


@pytest.mark.parametrize("name", SMALL)
def test_no_cuda_device_is_one_clear_line(name: str) -> None:
    from fastac.run import RunError

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RunError, match="device: got 'cuda', which is not available here"):
        agent(name, device="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SMALL)
def test_on_cuda_a_graph_gives_the_eager_updates_parameters(name: str) -> None:
    eager, graphed = agent(name, device="cuda", cudagraphs=False), agent(name, device="cuda")
    functions = captured(graphed).values()
    assert all(isinstance(function, GraphedUpdate) for function in functions)
    learn(eager, 12), learn(graphed, 12)
    assert any(kind.graph is not None for function in functions for kind in function._kinds.values())
    second = parameters(graphed)
    for key, value in parameters(eager).items():
        torch.testing.assert_close(value, second[key], rtol=1e-4, atol=1e-5)
        assert math.isfinite(float(value.sum()))
    close(eager), close(graphed)
