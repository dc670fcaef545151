"""Random calls of the estimators: what to pass, in which memory layout, and what must come out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import naive
import numpy as np

import fastac

ROWS = [0, 1, 2, 3, 5, 8, 9, 15, 16, 17, 31, 40]
COLUMNS = [None, 0, 1, 2, 3, 4, 5, 7, 8, 11, 15, 16, 17, 32, 33, 48, 49, 64]  # None: one-dimensional
LAYOUTS = ["contiguous", "transposed", "strided", "negative", "read_only", "padded"]
FLAGS = ("terminated", "truncated", "mask")
FLAG_SETS = [FLAGS, FLAGS[:2], FLAGS[::2], FLAGS[1:], FLAGS[:1], FLAGS[2:], ()]
REFERENCES: dict[str, Callable[..., Any]] = {
    "gae": naive.gae,
    "discounted_returns": naive.discounted_returns,
    "n_step_returns": naive.n_step_returns,
    "lambda_returns": naive.lambda_returns,
    "vtrace": naive.vtrace,
    "retrace": naive.retrace,
}
TWO_OUTPUTS = ("gae", "vtrace")
FULL_ONLY = ("retrace",)
_USUAL = ("rewards", "values", "next_values")
# The numbers that an estimator takes, by name: arrays of one shape, `next_values` in either form.
NUMBERS: dict[str, tuple[str, ...]] = {
    "gae": _USUAL,
    "discounted_returns": ("rewards", "next_values"),
    "n_step_returns": _USUAL,
    "lambda_returns": _USUAL,
    "vtrace": ("log_ratios", *_USUAL),
    "retrace": ("log_ratios", "rewards", "q_values", "next_values"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gae": {"gamma": 0.9, "gae_lambda": 0.8},
    "discounted_returns": {"gamma": 0.9},
    "n_step_returns": {"n": 3, "gamma": 0.9},
    "lambda_returns": {"gamma": 0.9, "td_lambda": 0.8},
    "vtrace": {"gamma": 0.9, "trace_lambda": 0.8, "rho_clip": 1.5, "c_clip": 1.0, "pg_rho_clip": 2.0},
    "retrace": {"gamma": 0.9, "trace_lambda": 0.8},
}


def as_tuple(name: str, result: Any) -> tuple[Any, ...]:
    """What an estimator returns, as a tuple of arrays."""
    return tuple(result) if name in TWO_OUTPUTS else (result,)


@dataclass(frozen=True)
class Case:
    """One call: time-major NumPy arguments and the options."""

    name: str
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def num_outputs(self) -> int:
        return 2 if self.name in TWO_OUTPUTS else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Values decide; rewards where there are none."""
        values = self.arguments.get("q_values" if self.name == "retrace" else "values")
        return np.asarray(self.arguments["rewards"] if values is None else values).dtype

    def with_arguments(self, **arguments: Any) -> "Case":
        return replace(self, arguments={**self.arguments, **arguments})

    def converted(self) -> dict[str, Any]:
        """Arguments as the kernel sees them: floats rounded to its dtype (half precisions to float32)."""
        dtype = np.float64 if self.dtype == np.float64 else np.float32
        return {
            name: argument if argument is None or name in FLAGS else np.asarray(argument).astype(dtype)
            for name, argument in self.arguments.items()
        }

    def expected(self) -> tuple[np.ndarray, ...]:
        """The reference's results in float64."""
        reference = REFERENCES[self.name]
        return naive.over_sequences(
            lambda column: reference(**column, **self.options), self.converted(), self.num_outputs
        )

    def bounds(self) -> tuple[np.ndarray, ...]:
        """Rule 13: 4 eps min(T, 1 / (1 - gamma lambda)) S_t, and room for results below the smallest normal number."""
        dtype = np.float64 if self.dtype == np.float64 else np.float32
        lambdas = [self.options[name] for name in ("gae_lambda", "td_lambda", "trace_lambda") if name in self.options]
        factor = math.prod(lambdas) * self.options["gamma"]
        if self.options.get("c_clip", 1.0) > 1:
            factor = 1.0  # a trace that may grow is as long as the window
        length = len(self.arguments["rewards"])
        steps = length if factor >= 1 else min(length, 1 / (1 - factor))
        scale = naive.over_sequences(
            lambda column: naive.absolute(REFERENCES[self.name], column, self.options),
            self.converted(),
            self.num_outputs,
        )
        info = np.finfo(dtype)
        return tuple(4 * info.eps * steps * s + length * info.tiny for s in scale)

    def call(self, present: Callable[[str, Any], Any] | None = None, **keywords: Any) -> tuple[Any, ...]:
        """Call fastac; `present(name, array)` decides how each argument is laid out."""
        arguments = self.arguments
        if present is not None:
            arguments = {name: None if a is None else present(name, a) for name, a in arguments.items()}
        result = getattr(fastac, self.name)(**arguments, **self.options, **keywords)
        return as_tuple(self.name, result)

    def unread(self) -> dict[str, np.ndarray]:
        """Where each array argument may hold anything: the entries the reference never looks at."""
        arrays = {name: a for name, a in self.arguments.items() if isinstance(a, np.ndarray)}
        masks = {name: np.ones(a.shape, dtype=bool) for name, a in arrays.items()}
        rewards = self.arguments["rewards"]
        for i in [None] if rewards.ndim == 1 else range(rewards.shape[1]):
            column = dict(self.arguments) if i is None else {k: naive.take(a, i) for k, a in self.arguments.items()}
            records = {k: naive.Recorder(a) for k, a in column.items() if np.ndim(a) == 1}
            REFERENCES[self.name](**{**column, **records}, **self.options)
            for name, record in records.items():
                if i is None:
                    masks[name] &= ~record.read
                elif arrays[name].ndim == 2:
                    masks[name][:, i] &= ~record.read
            if i is not None and np.ndim(self.arguments["next_values"]) == 1:
                masks["next_values"][i] = not short_value_is_read(column)
        return masks


def short_value_is_read(column: dict[str, Any]) -> bool:
    """The short value is V after the last valid row, unless that row is terminated."""
    length = len(column["rewards"])
    valid = [t for t in range(length) if naive.is_valid(column.get("mask"), t)]
    return bool(valid) and not naive.is_set(column.get("terminated"), valid[-1])


def make_flags(generator: np.random.Generator, shape: tuple[int, ...], probability: float, dtype: str) -> np.ndarray:
    """Flags of any dtype; whatever is not 0 is set, however it is written."""
    chosen = generator.random(shape) < probability
    if dtype == "bool":
        return chosen
    spellings = {"uint8": [1, 2, 255], "int64": [1, -1, 256], "float32": [1.0, 0.5, -2.0], "float64": [1.0, 1e-300]}
    return np.where(chosen, generator.choice(spellings[dtype], size=shape), 0).astype(dtype)


@st.composite
def cases(
    draw: Any,
    names: tuple[str, ...] = tuple(REFERENCES),
    dtypes: tuple[str, ...] = ("float32", "float64"),
    flag_dtypes: tuple[str, ...] = ("bool", "uint8", "int64", "float32", "float64"),
    reward_dtypes: tuple[str, ...] = ("same", "float64", "int64", "int8"),
    inner: bool = False,
    packed: bool = False,
) -> Case:
    """A random call. `inner` keeps gamma and lambda inside (0, 1); `packed` asks for one dimension, not empty."""
    name = draw(st.sampled_from(names))
    length = draw(st.sampled_from(ROWS[1:] if packed else ROWS))
    width = None if packed else draw(st.sampled_from(COLUMNS))
    shape = (length,) if width is None else (length, width)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    scale = draw(st.sampled_from([1e-3, 1.0, 100.0]))
    rewards = generator.normal(size=shape) * scale
    reward_dtype = draw(st.sampled_from(reward_dtypes))
    if name == "discounted_returns":
        reward_dtype = "same"
    if reward_dtype.startswith("int"):
        rewards = np.clip(np.round(rewards * 10), -100, 100)
    arguments: dict[str, Any] = {"rewards": rewards.astype(dtype if reward_dtype == "same" else reward_dtype)}
    full = name in FULL_ONLY or draw(st.booleans())
    if "log_ratios" in NUMBERS[name]:
        spread = draw(st.sampled_from([0.1, 1.0, 5.0]))
        arguments["log_ratios"] = (spread * generator.normal(size=shape)).astype(dtype)
    for values in {"values", "q_values"} & set(NUMBERS[name]):
        arguments[values] = generator.normal(size=shape).astype(dtype)
    if full:
        arguments["next_values"] = generator.normal(size=shape).astype(dtype)
    elif width is None or draw(st.booleans()):
        arguments["next_values"] = draw(st.sampled_from([0.0, 0, -1.25]))
    else:
        arguments["next_values"] = generator.normal(size=width).astype(dtype)
    probability = draw(st.sampled_from([0.02, 0.2, 0.6, 1.0]))
    for flag in draw(st.sampled_from(FLAG_SETS)):
        if full or flag != "truncated":
            chance = 1 - probability / 2 if flag == "mask" else probability
            arguments[flag] = make_flags(generator, shape, chance, draw(st.sampled_from(flag_dtypes)))
    if full and name in ("n_step_returns", "lambda_returns") and reward_dtype == "same" and draw(st.booleans()):
        arguments["values"] = None
    discounts = [0.5, 0.9, 0.99] if inner else [0.0, 0.5, 0.9, 0.99, 1.0]
    options: dict[str, Any] = {"gamma": draw(st.sampled_from(discounts))}
    if name == "gae":
        options["gae_lambda"] = draw(st.sampled_from(discounts))
    elif name == "lambda_returns":
        options["td_lambda"] = draw(st.sampled_from(discounts))
    elif "log_ratios" in NUMBERS[name]:
        options["trace_lambda"] = draw(st.sampled_from(discounts))
        for clip in ("rho_clip", "c_clip", "pg_rho_clip") if name == "vtrace" else ():
            options[clip] = draw(st.sampled_from([0.3, 1.0, 1.0, 2.0]))
    elif name == "n_step_returns":
        options["n"] = draw(st.sampled_from([1, 2, 3, 5, 8, 100]))
    return Case(name, arguments, options)


def example(name: str, shape: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """The numbers of one call in the full form, float32."""
    generator = np.random.default_rng(seed)
    return {key: generator.normal(size=shape).astype(np.float32) for key in NUMBERS[name]}


def lay_out(array: Any, layout: str) -> Any:
    """The same numbers in other memory."""
    array = np.asarray(array)
    if array.ndim == 0 or layout == "contiguous":
        return array
    if layout == "transposed":
        return np.asfortranarray(array)
    if layout == "strided":
        wide = np.full(tuple(2 * s for s in array.shape), 77, dtype=array.dtype)
        view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    elif layout == "negative":
        view = np.empty_like(array)[tuple(slice(None, None, -1) for _ in array.shape)]
    elif layout == "padded":  # a window of a larger buffer: rows are contiguous, the whole is not
        wide = np.full(tuple(s + 3 for s in array.shape), 77, dtype=array.dtype)
        view = wide[tuple(slice(2, s + 2) for s in array.shape)]
    else:
        view = np.empty_like(array)
    view[...] = array
    if layout == "read_only":
        view.flags.writeable = False
    return view


def assert_within(results: tuple[Any, ...], case: Case) -> None:
    """Every output within the accuracy bound and NaN exactly where the reference has it."""
    assert len(results) == case.num_outputs
    for result, expected, bound in zip(results, case.expected(), case.bounds(), strict=True):
        result = np.asarray(result, dtype=np.float64)
        assert result.shape == expected.shape
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(result[~finite], expected[~finite])
        error = np.abs(result - expected)[finite]
        allowed = bound[finite]
        worst = np.max(error - allowed, initial=-np.inf)
        assert worst <= 0, f"{case.name}{case.options}: off by {worst} more than the bound"


def assert_same_bytes(results: tuple[Any, ...], others: tuple[Any, ...]) -> None:
    """Bit for bit, the sign of zero and NaN payloads aside."""
    for result, other in zip(results, others, strict=True):
        np.testing.assert_array_equal(np.asarray(result), np.asarray(other), strict=True)
