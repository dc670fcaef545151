"""`MLP` is `nn.Sequential`, only faster: the same numbers, the same gradients, whatever its owner does with it."""

from __future__ import annotations

import copy
import io
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastac import mlp as module
from fastac.mlp import MLP


def layers(widths: list[int], activation: type[nn.Module] = nn.Tanh, seed: int = 0) -> list[nn.Module]:
    generator = torch.Generator().manual_seed(seed)
    found: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            linear.weight.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
            linear.bias.copy_(torch.randn(outputs, generator=generator))
        found += [linear, activation()]
    return found[:-1]


def rows(batch: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))


def is_node(y: Tensor) -> bool:
    """Whether the kernels made it."""
    return y.grad_fn is not None and y.grad_fn.name() == "MLPNodeBackward"


def exact(network: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Output and gradients of a float64 copy, layer by layer."""
    twin = nn.Sequential(*copy.deepcopy(list(network.children()))).double()
    twin.zero_grad()
    inputs = x.detach().double().requires_grad_()
    y = twin(inputs)
    y.backward(gradient.double())
    return y.detach(), [inputs.grad, *(p.grad for p in twin.parameters())]


def close(got: Tensor, wanted: Tensor) -> None:
    """Within rounding: where tanh is nearly 1, 1 - tanh^2 has few digits, in torch as here."""
    torch.testing.assert_close(got.double(), wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max()) + 1e-5)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=3, max_size=6),
    batch=st.integers(1, 70),
    activation=st.sampled_from([nn.Tanh, nn.ReLU]),
    frozen=st.sets(st.integers(0, 9)),
    wants_x=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_float64_for_any_widths_and_frozen_parameters(
    widths: list[int], batch: int, activation: type[nn.Module], frozen: set[int], wants_x: bool, seed: int
) -> None:
    network = MLP(*layers(widths, activation, seed))
    parameters = list(network.parameters())
    for k, p in enumerate(parameters):
        p.requires_grad_(k not in frozen or k == 0)
    x = rows(batch, widths[0], seed).requires_grad_(wants_x)
    gradient = rows(batch, widths[-1], seed + 1)
    y = network(x)
    assert is_node(y)
    y.backward(gradient)
    wanted, gradients = exact(network, x, gradient)
    close(y, wanted)
    for got, tensor, k in zip([x.grad, *(p.grad for p in parameters)], gradients, range(-1, 99), strict=False):
        if (k < 0 and not wants_x) or (k > 0 and k in frozen):
            assert got is None
        else:
            assert got is not None
            assert tensor is not None
            close(got, tensor)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=3, max_size=6),
    batch=st.integers(1, 70),
    activation=st.sampled_from([nn.Tanh, nn.ReLU]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_a_frozen_network_hands_on_the_gradient_of_the_rows_that_have_one(
    widths: list[int], batch: int, activation: type[nn.Module], share: float, seed: int
) -> None:
    network = MLP(*layers(widths, activation, seed)).requires_grad_(False)
    x, gradient = rows(batch, widths[0], seed).requires_grad_(), rows(batch, widths[-1], seed + 1)
    gradient[torch.rand(batch, generator=torch.Generator().manual_seed(seed)) < share] = 0.0
    y = network(x)
    assert is_node(y)
    y.backward(gradient)
    wanted, (of_x, *_) = exact(network, x, gradient)
    assert x.grad is not None
    assert of_x is not None
    close(y, wanted)
    close(x.grad, of_x)
    assert (x.grad[(gradient == 0).all(1)] == 0).all()


@pytest.mark.parametrize("blas", [0, module.BLAS])
def test_large_layers_with_either_blas(blas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLAS", blas)
    network = MLP(*layers([23, 256, 100, 12], nn.ReLU))
    x, gradient = rows(256, 23).requires_grad_(), rows(256, 12)
    y = network(x)
    y.backward(gradient)
    wanted, gradients = exact(network, x, gradient)
    close(y, wanted)
    for got, tensor in zip([x.grad, *(p.grad for p in network.parameters())], gradients, strict=True):
        assert got is not None
        assert tensor is not None
        torch.testing.assert_close(got.double(), tensor, rtol=2e-5, atol=2e-5 * float(tensor.abs().max()))


def network_and_twin(activation: type[nn.Module] = nn.Tanh) -> tuple[MLP, nn.Sequential]:
    made = layers([3, 8, 8, 2], activation)
    return MLP(*made), nn.Sequential(*copy.deepcopy(made))


def test_state_dict_is_sequentials() -> None:
    network, twin = network_and_twin()
    assert list(network.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(network.state_dict())
    network.load_state_dict(twin.state_dict())


def surgeries() -> dict[str, Callable[[nn.Sequential], Any]]:
    """What owners do with networks; each must leave `MLP` and `nn.Sequential` the same."""

    def replaced(n: nn.Sequential) -> None:
        n[2] = layers([8, 8], seed=5)[0]

    def pruned(n: nn.Sequential) -> None:
        first, second = n[0], n[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        first.weight.data, first.bias.data = first.weight.data[:4], first.bias.data[:4]
        second.weight.data = second.weight.data[:, :4]

    def transposed(n: nn.Sequential) -> None:
        second = n[2]
        assert isinstance(second, nn.Linear)
        second.weight.data = second.weight.data.t()

    def assigned(n: nn.Sequential) -> None:
        n.load_state_dict({k: v.clone() * 2 for k, v in n.state_dict().items()}, assign=True)

    def without_bias(n: nn.Sequential) -> None:
        second = n[2]
        assert isinstance(second, nn.Linear)
        second.bias = None  # type: ignore[assignment]

    def weight_norm(n: nn.Sequential) -> None:
        nn.utils.parametrizations.weight_norm(n[2])

    return {
        "replaced layer": replaced,
        "pruned in place": pruned,
        "transposed memory": transposed,
        "assigned": assigned,
        "no bias": without_bias,
        "parametrised": weight_norm,
        "longer": lambda n: (n.append(nn.Tanh()), n.append(layers([2, 2], seed=3)[0])),
        "another activation": lambda n: n.__setitem__(1, nn.ELU()),
        "in place": lambda n: n[0].weight.data.mul_(3.0),
        "there and back": lambda n: n.double().float(),
    }


@pytest.mark.parametrize("name", surgeries())
def test_surgery_between_two_calls(name: str) -> None:
    network, twin = network_and_twin()
    x = rows(5, 3)
    network(x)
    for n in (network, twin):
        surgeries()[name](n)
    got, wanted = network(x), twin(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    got.sum().backward()
    wanted.sum().backward()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_deepcopy_pickle_and_save_make_independent_networks() -> None:
    network, _ = network_and_twin()
    x = rows(4, 3)
    before = network(x).detach()
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    for twin in (copy.deepcopy(network), torch.load(file, weights_only=False)):
        torch.testing.assert_close(twin(x).detach(), before, rtol=0, atol=0)
        twin[0].weight.data.zero_()
        torch.testing.assert_close(network(x).detach(), before, rtol=0, atol=0)
        assert not torch.equal(twin(x), before)


def test_gradients_accumulate_and_a_network_may_be_used_twice() -> None:
    network, twin = network_and_twin()
    a, b = rows(4, 3), rows(6, 3, seed=2)
    for n in (network, twin):
        (n(a).sum() * n(b).sum()).backward()
        n(a).square().sum().backward()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-4)


def test_old_gradients_are_their_holders() -> None:
    """Gradients kept from one backward pass do not change in the next."""
    network, _ = network_and_twin()
    network(rows(4, 3)).sum().backward()
    kept = [p.grad for p in network.parameters()]
    copies = [None if g is None else g.clone() for g in kept]
    network.zero_grad()
    network(rows(9, 3, seed=7)).square().sum().backward()
    for g, c in zip(kept, copies, strict=True):
        assert g is not None
        assert c is not None
        assert torch.equal(g, c)


def test_autograd_grad_of_parameters_and_of_inputs() -> None:
    network, twin = network_and_twin()
    x = rows(4, 3).requires_grad_()
    got = torch.autograd.grad(network(x).sum(), [x, *network.parameters()])
    wanted = torch.autograd.grad(twin(x).sum(), [x, *twin.parameters()])
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in network.parameters())
    assert x.grad is None


def test_hooks_on_parameters_and_on_layers_are_called() -> None:
    network, _ = network_and_twin()
    x, calls = rows(4, 3), []
    next(network.parameters()).register_hook(lambda g: calls.append("parameter"))
    y = network(x)
    assert is_node(y)
    y.sum().backward()
    network[1].register_forward_hook(lambda *_: calls.append("layer"))
    assert not is_node(network(x))
    assert calls == ["parameter", "layer"]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_gradient_penalty(activation: type[nn.Module]) -> None:
    """Derivatives of derivatives reach the parameters."""
    network, twin = network_and_twin(activation)
    for n in (network, twin):
        x = rows(4, 3).requires_grad_()
        (slope,) = torch.autograd.grad(n(x).sum(), x, create_graph=True)
        (slope.square().sum() + n(x).sum()).backward()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)


def test_a_parameter_changed_before_backward_is_an_error() -> None:
    network, _ = network_and_twin()
    y = network(rows(4, 3))
    with torch.no_grad():
        next(network.parameters()).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_transforms_and_compilers_take_torchs_way() -> None:
    network, twin = network_and_twin()
    x = rows(4, 3)
    close_to = {"rtol": 1e-5, "atol": 1e-6}
    parameters = dict(network.named_parameters())
    doubled = {k: v.detach() * 2 for k, v in parameters.items()}
    torch.testing.assert_close(
        torch.func.functional_call(network, doubled, x), torch.func.functional_call(twin, doubled, x), **close_to
    )
    torch.testing.assert_close(torch.vmap(network)(x[:, None])[:, 0], twin(x), **close_to)
    jacobian = torch.func.jacrev(lambda row: network(row[None])[0])(x[0])
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda row: twin(row[None])[0])(x[0]), **close_to)
    _, tangent = torch.func.jvp(network, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.func.jvp(twin, (x,), (torch.ones_like(x),))[1], **close_to)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x), **close_to)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x).dtype is torch.bfloat16


@pytest.mark.parametrize(
    "x",
    [torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 4, 3), rows(3, 4).t(), rows(8, 3)[::2]],
    ids=["no rows", "one row", "three dimensions", "transposed", "strided"],
)
def test_inputs_of_other_shapes_and_strides(x: Tensor) -> None:
    network, twin = network_and_twin()
    torch.testing.assert_close(network(x), twin(x), rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), twin(x), rtol=1e-5, atol=1e-6)


def test_other_types_are_converted_or_refused_as_by_torch() -> None:
    network, _ = network_and_twin()
    with pytest.raises(RuntimeError, match="dtype"):
        network(torch.zeros(2, 3, dtype=torch.float64))
    assert network.double()(torch.zeros(2, 3, dtype=torch.float64)).dtype is torch.float64
    with pytest.raises(RuntimeError, match="shape"):
        network.float()(torch.zeros(2, 5))


def test_nan_goes_through() -> None:
    """Neither activation hides it."""
    for activation in (nn.Tanh, nn.ReLU):
        network, _ = network_and_twin(activation)
        assert network(torch.full((2, 3), float("nan"))).isnan().all()


def test_without_scipy_torch_runs_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    network, twin = network_and_twin()
    monkeypatch.setattr(module, "AVAILABLE", False)
    y = network(rows(2, 3))
    assert not is_node(y)
    assert torch.equal(y, twin(rows(2, 3)))


def test_threads_may_share_a_network() -> None:
    network, _ = network_and_twin()
    inputs = [rows(50, 3, seed) for seed in range(4)]
    wanted = [torch.autograd.grad(network(x).sum(), list(network.parameters())) for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(50):
            got = torch.autograd.grad(network(inputs[k]).sum(), list(network.parameters()))
            if not all(torch.equal(g, w) for g, w in zip(got, wanted[k], strict=True)):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
