"""CUDA graphs of updates: what a graph would be given, on the CPU, gives the eager update's parameters.

Whether a graph replays what was captured can be seen on a device only (`pytest -m cuda`).
"""

import contextlib
import importlib
import math
from typing import Any, NamedTuple

import pytest
import torch
from nothing_read import NothingRead

from fastac import graphs
from fastac.graphs import GraphedUpdate

CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"num_envs": 2, "num_steps": 16, "anneal_clip": True, "hidden_sizes": (8,), "target_kl": 10.0},
    "sac": {"batch_size": 16, "hidden_sizes": (8,), "buffer_size": 200, "anneal_lr": True},
    "td3": {"batch_size": 16, "hidden_sizes": (8,), "buffer_size": 200, "anneal_lr": True},
    "ddpg": {"batch_size": 16, "hidden_sizes": (8,), "buffer_size": 200, "policy_frequency": 2},
}


def agent(name: str, **more: Any) -> Any:
    module = importlib.import_module(f"fastac.algorithms.{name}")
    env_id = "CartPole-v1" if name == "ppo" else "Pendulum-v1"
    made = getattr(module, name.upper())(module.Config(env_id=env_id, **SMALL[name], **more))
    if name != "ppo":
        for _ in range(60):
            made.experience.step(made.experience.random_actions())
    return made


def learn(name: str, made: Any, updates: int) -> None:
    for k in range(updates):
        if name == "ppo":
            made.collector.collect()
            made.estimate()
            made.update(1.0 - k / updates)
        else:
            made.anneal(1.0 - k / updates)
            made.update()


def parameters(made: Any) -> dict[str, torch.Tensor]:
    modules = {key: x for key, x in vars(made).items() if isinstance(x, torch.nn.Module)}
    targets = {key: made.__dict__[key].network for key in ("target", "target_actor") if key in made.__dict__}
    found = {f"{key}.{n}": p for key, m in {**modules, **targets}.items() for n, p in m.state_dict().items()}
    return found | ({"log_alpha": made.log_alpha.detach()} if hasattr(made, "log_alpha") else {})


@pytest.mark.parametrize("name", SMALL)
def test_the_static_form_gives_the_eager_updates_parameters(name: str) -> None:
    """Copied into static buffers, numbers as tensors: the same parameters, bit for bit."""
    eager, static = agent(name), agent(name)
    static.learn = GraphedUpdate(static.learn, CPU)
    learn(name, eager, 6), learn(name, static, 6)
    assert len(static.learn._kinds) == (1 if name == "ppo" else 2)
    first, second = parameters(eager), parameters(static)
    assert len(first) >= 4
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    for made in (eager, static):
        (made.collector if name == "ppo" else made.experience).close()


@pytest.mark.parametrize("name", SMALL)
def test_a11_an_update_reads_nothing_back(name: str) -> None:
    """Row A11, of the torch operations that CUDA tensors take: what is captured may not look at a value."""
    made = agent(name)
    if name == "ppo":
        made.collector.collect()
        made.estimate()
        batch = next(made.buffer.minibatches(2, torch.Generator().manual_seed(0)))
        arguments: tuple[Any, ...] = (batch, torch.tensor(0.2))
    else:
        batch = made.experience.sample(16)
        arguments = (batch, True) if name == "ddpg" else (batch, made.noise(), True)
        arguments = (batch, [made.noise() for _ in range(3)]) if name == "sac" else arguments
    before = parameters(made)
    before = {key: value.clone() for key, value in before.items()}
    with NothingRead():
        made.learn(*arguments)
    assert any(not torch.equal(value, before[key]) for key, value in parameters(made).items())
    (made.collector if name == "ppo" else made.experience).close()


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
    assert isinstance(graphed.learn, GraphedUpdate)
    learn(name, eager, 12), learn(name, graphed, 12)
    assert any(kind.graph is not None for kind in graphed.learn._kinds.values())
    second = parameters(graphed)
    for key, value in parameters(eager).items():
        torch.testing.assert_close(value, second[key], rtol=1e-4, atol=1e-5)
        assert math.isfinite(float(value.sum()))
