"""Who takes part: fastac, the real functions of other libraries, and the limit. The one place that defines them.

Each is called as its users call it, on data in the layout, dtype and kind of array in which it is fastest and which its
own convention asks for; preparing them (flattening, masking, device arrays) is not timed. Nor is what a peer leaves
to its caller: rlax, tianshou and rlox's users add the values to get returns, tianshou's mask next values.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import limits
from bench.cases import GAMMA, LAMBDA, Case, disagreement, make_case

TOLERANCE = 1e-4


class NotOfferedError(Exception):
    """The peer has no function, or no way, to compute this case."""


@dataclass(frozen=True)
class Contender:
    """`call` is what is timed; `read` turns its result into `(T, N)` arrays."""

    call: Callable[[], Any]
    read: Callable[[Any], tuple[Any, ...]] | None
    ends: bool = True  # False: it knows no episode's end, and is checked on an input without


Factory = Callable[[Case], Contender]
FACTORIES: dict[str, tuple[str | None, Factory]] = {}


def contender(name: str, module: str | None = None) -> Callable[[Factory], Factory]:
    """Register a factory; `module` is what has to be importable."""

    def register(factory: Factory) -> Factory:
        FACTORIES[name] = (module, factory)
        return factory

    return register


def missing() -> dict[str, str]:
    """Contenders whose library cannot be imported, and why."""
    absent = {}
    for name, (module, _) in FACTORIES.items():
        if module:
            try:
                importlib.import_module(module)
            except Exception as error:  # a broken peer must not stop the others
                absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return absent


def build(name: str, case: Case) -> Contender:
    """The contender, after it has computed the right numbers.

    Raises:
        NotOfferedError: It cannot compute this case.
        ArithmeticError: It computes something else.
    """
    factory = FACTORIES[name][1]
    made = factory(case)
    if made.read is not None:
        checked_case = (
            case if made.ends else make_case(case.estimator, case.form, (case.T, case.N), ends=False, n=case.n)
        )
        checked = made if made.ends else factory(checked_case)
        assert checked.read is not None
        error = disagreement(checked.read(checked.call()), checked_case)
        if not error < TOLERANCE:
            raise ArithmeticError(f"{name} differs from float64 by {error:.1e} of the largest value")
    return made


def names(*, peers: bool = True) -> Iterator[str]:
    for name, (module, _) in FACTORIES.items():
        if peers or module is None:
            yield name


def only_short(case: Case) -> None:
    if case.form == "full":
        raise NotOfferedError("takes no next value of its own for each row")


def offers(case: Case, *estimators: str) -> None:
    if case.estimator not in estimators:
        raise NotOfferedError(f"no {case.estimator}")


def by_environment(array: np.ndarray) -> np.ndarray:
    """One environment's rows after the other's, flat."""
    return np.ascontiguousarray(array.T).reshape(-1)


def from_environments(case: Case) -> Callable[[Any], np.ndarray]:
    return lambda flat: np.asarray(flat).reshape(case.N, case.T).T


def one(result: Any) -> tuple[Any, ...]:
    return (result,)


@contender("fastac")
def fastac_numpy(case: Case) -> Contender:
    """The public call on NumPy arrays, with `out=`."""
    import fastac

    function = getattr(fastac, case.estimator)
    options: dict[str, Any] = {"gamma": GAMMA}
    if case.estimator in ("gae", "lambda_returns"):
        options["gae_lambda" if case.estimator == "gae" else "td_lambda"] = LAMBDA
    if case.estimator == "n_step_returns":
        options["n"] = case.n
    if case.estimator == "retrace":
        options["trace_lambda"] = LAMBDA
    arrays: list[Any] = [*([case.log_ratios] if case.reads_ratios else []), case.rewards]
    if case.estimator != "discounted_returns":
        arrays.append(case.values if case.reads_values else None)
    arrays += [case.next_values if case.reads_next_rows else case.last_values, case.terminated]
    arrays += [case.truncated] if case.form == "full" else []
    empty = np.empty_like(case.rewards)
    options["out"] = (empty, np.empty_like(empty)) if case.outputs == 2 else empty
    return Contender(lambda: function(*arrays, **options), tuple if case.outputs == 2 else one)


@contender("rlax", "rlax")
def rlax_jit(case: Case) -> Contender:
    """`jit(vmap(...))` over time-major device arrays, dispatched synchronously: both are fastest here."""
    import jax
    import rlax

    only_short(case)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    log_ratios, rewards, values, next_values = map(
        jax.numpy.asarray, (case.log_ratios, case.rewards, case.values, case.next_values)
    )
    discounts = jax.numpy.asarray(np.where(case.terminated, 0, GAMMA).astype(np.float32))
    observed = jax.numpy.concatenate([values, next_values[-1:]])
    # Without truncation the next values are the values shifted by a row, which is what rlax wants as v_t.
    functions: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "gae": (
            lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, LAMBDA, v),
            (rewards, discounts, observed),
        ),
        "discounted_returns": (lambda r, d, v: rlax.discounted_returns(r, d, v), (rewards, discounts, next_values[-1])),
        "n_step_returns": (
            lambda r, d, v: rlax.n_step_bootstrapped_returns(r, d, v, case.n),
            (rewards, discounts, next_values),
        ),
        "lambda_returns": (lambda r, d, v: rlax.lambda_returns(r, d, v, LAMBDA), (rewards, discounts, next_values)),
        # It returns targets minus values, V-trace with estimates of Q besides, which the compiler drops here.
        "vtrace": (
            lambda x, r, d, v, w: rlax.vtrace_td_error_and_advantage(v, w, r, d, jax.numpy.exp(x))[:2],
            (log_ratios, rewards, discounts, values, next_values),
        ),
        "retrace": (
            lambda x, r, d, q, v: rlax.retrace_continuous(q, q[1:], v, r, d, x[1:], LAMBDA),
            (log_ratios, rewards, discounts, values, next_values),
        ),
    }
    function, arrays = functions[case.estimator]
    axes = tuple(0 if array.ndim == 1 else 1 for array in arrays)
    compiled = jax.jit(jax.vmap(function, in_axes=axes, out_axes=1))

    def read(out: Any) -> tuple[Any, ...]:
        first, *others = out if isinstance(out, tuple) else (out,)
        return (np.asarray(first) + case.values if case.reads_ratios else first, *others)

    return Contender(lambda: jax.block_until_ready(compiled(*arrays)), read)


@contender("tianshou", "tianshou")
def tianshou_njit(case: Case) -> Contender:
    """Its two Numba functions on flat data; `_gae` with the dtypes that tianshou compiles it for."""
    from tianshou.algorithm import algorithm_base

    offers(case, "gae", "n_step_returns")
    end_flag = case.ended.copy()
    end_flag[-1] = True
    ends = by_environment(end_flag)
    rewards = by_environment(case.rewards).astype(np.float64)
    values = by_environment(case.values)
    next_values = by_environment(np.where(case.terminated, np.float32(0), case.next_values))
    back = from_environments(case)
    if case.estimator == "gae":
        return Contender(
            lambda: algorithm_base._gae(values, next_values, rewards, ends, GAMMA, LAMBDA), lambda out: (back(out),)
        )
    indices = [np.arange(case.T * case.N)]
    for _ in range(case.n - 1):
        indices.append(np.where(ends[indices[-1]], indices[-1], indices[-1] + 1))
    stacked = np.stack(indices)
    targets = next_values[stacked[-1]].reshape(-1, 1)
    return Contender(
        lambda: algorithm_base._nstep_return(rewards, ends, targets, stacked, GAMMA, case.n),
        lambda out: (back(out),),
    )


@contender("rlox", "rlox")
def rlox_batched(case: Case) -> Contender:
    """`compute_gae_batched_f32` on flat data."""
    import rlox

    offers(case, "gae")
    only_short(case)
    rewards, values = by_environment(case.rewards), by_environment(case.values)
    dones = by_environment(case.terminated).astype(np.float32)
    last_values = case.last_values.copy()
    back = from_environments(case)
    return Contender(
        lambda: rlox.compute_gae_batched_f32(rewards, values, dones, last_values, case.T, GAMMA, LAMBDA),
        lambda out: tuple(map(back, out)),
    )


@contender("rlox_single", "rlox")
def rlox_single(case: Case) -> Contender:
    """`compute_gae`: one environment, float64."""
    import rlox

    offers(case, "gae")
    only_short(case)
    if case.N != 1:
        raise NotOfferedError("one environment only")
    rewards, values, dones = (array[:, 0].astype(np.float64) for array in (case.rewards, case.values, case.terminated))
    last_value = float(case.last_values[0])
    return Contender(
        lambda: rlox.compute_gae(rewards, values, dones, last_value, GAMMA, LAMBDA),
        lambda out: tuple(array[:, None] for array in out),
    )


@contender("torchrl", "torchrl")
def torchrl_vectorised(case: Case) -> Contender:
    """The `vec_` functionals, and V-trace's only one, on contiguous `(N, T, 1)` tensors."""
    import torch
    from torchrl.objectives.value import functional

    offers(case, "gae", "discounted_returns", "lambda_returns", "vtrace")
    torch.set_num_threads(1)
    rewards, values, next_values, terminated, done, log_pi = (
        torch.from_numpy(np.ascontiguousarray(array.T)[..., None])
        for array in (case.rewards, case.values, case.next_values, case.terminated, case.ended, case.log_ratios)
    )

    def back(out: Any) -> np.ndarray:
        array: np.ndarray = out.numpy()[..., 0].T
        return array

    if case.estimator == "gae":
        return Contender(
            lambda: functional.vec_generalized_advantage_estimate(
                GAMMA, LAMBDA, values, next_values, rewards, done, terminated
            ),
            lambda out: tuple(map(back, out)),
        )
    if case.estimator == "vtrace":
        log_mu = torch.zeros_like(log_pi)
        return Contender(
            lambda: functional.vtrace_advantage_estimate(
                GAMMA, log_pi, log_mu, values, next_values, rewards, done, terminated
            ),
            lambda out: (back(out[1]), back(out[0])),
        )
    if case.estimator == "discounted_returns":
        return Contender(
            lambda: functional.vec_td1_return_estimate(GAMMA, next_values, rewards, done, terminated),
            lambda out: (back(out),),
        )
    return Contender(
        lambda: functional.vec_td_lambda_return_estimate(GAMMA, LAMBDA, next_values, rewards, done, terminated),
        lambda out: (back(out),),
    )


@contender("sb3", "stable_baselines3")
def sb3_buffer(case: Case) -> Contender:
    """`RolloutBuffer.compute_returns_and_advantage` on a full buffer."""
    import gymnasium
    import torch
    from stable_baselines3.common.buffers import RolloutBuffer

    offers(case, "gae")
    only_short(case)
    torch.set_num_threads(1)
    spaces = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)
    buffer = RolloutBuffer(case.T, *spaces, device="cpu", gamma=GAMMA, gae_lambda=LAMBDA, n_envs=case.N)
    buffer.rewards[:], buffer.values[:] = case.rewards, case.values
    buffer.episode_starts[1:] = case.terminated[:-1]
    last_values, dones = torch.from_numpy(case.last_values.copy()), case.terminated[-1]
    return Contender(
        lambda: buffer.compute_returns_and_advantage(last_values, dones), lambda _: (buffer.advantages, buffer.returns)
    )


@contender("scipy", "scipy")
def scipy_lfilter(case: Case) -> Contender:
    """`lfilter` over reversed time, the last value as initial state; it knows no episode's end."""
    from scipy.signal import lfilter

    offers(case, "discounted_returns")
    only_short(case)
    b, a = np.ones(1, dtype=np.float32), np.array([1, -GAMMA], dtype=np.float32)
    initial = (np.float32(GAMMA) * case.last_values)[None]
    return Contender(lambda: lfilter(b, a, case.rewards[::-1], axis=0, zi=initial)[0][::-1], one, ends=False)


def moved(case: Case) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Arrays copied, their targets, floats that are only read, and flags: together the estimator's bytes."""
    floats = [case.rewards, *([case.values] if case.reads_values else [])]
    floats += [case.log_ratios] if case.reads_ratios else []
    floats += [case.next_values] if case.reads_next_rows else []
    flags = [case.terminated, *([case.truncated] if case.form == "full" else [])]
    targets = [np.zeros_like(case.rewards) for _ in range(case.outputs)]
    return floats[: case.outputs], targets, floats[case.outputs :], flags


@contender("limit")
def limit(case: Case) -> Contender:
    return Contender(limits.limit(*moved(case)), None)


@contender("memcpy")
def memcpy(case: Case) -> Contender:
    sources, targets, *_ = moved(case)
    return Contender(limits.memcpy(sources, targets), None)
