"""Random calls of the CUDA kernels, with what must come out: for the simulator, and for a device.

A call is made of sequences first, each with its reference, and then laid out in memory as the kernels want it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import naive
import numpy as np

import fastac_kernels.cuda as kernels

FLAGS = ("terminated", "truncated", "mask")
FLAG_SETS = [(), FLAGS[:1], FLAGS[:2], FLAGS, FLAGS[2:], FLAGS[::2], FLAGS[1:2]]
LAYOUTS = ("time", "batch", "packed", "single")
SIZES = (1, 2, 3, 5, 17, 33)
NAMES = tuple(kernels.ESTIMATORS)
TWO_OUTPUTS = ("gae", "vtrace")
RATIOS = ("vtrace", "retrace")
MORE: dict[str, tuple[Any, ...]] = {"discounted_returns": (1.0, True), "lambda_returns": (False,)}
OPTIONS: dict[str, tuple[str, ...]] = {
    "gae": ("gamma", "gae_lambda"),
    "discounted_returns": ("gamma",),
    "lambda_returns": ("gamma", "td_lambda"),
    "n_step_returns": ("n", "gamma"),
    "vtrace": ("gamma", "trace_lambda", "rho_clip", "c_clip", "pg_rho_clip"),
    "retrace": ("gamma", "trace_lambda"),
}
CHOICES: dict[str, list[float]] = {
    "gamma": [0.9, 0.99, 1.0, 0.0],
    "gae_lambda": [0.8, 0.95, 1.0, 0.0],
    "td_lambda": [0.8, 0.95, 1.0, 0.0],
    "trace_lambda": [0.8, 1.0, 0.0],
    "rho_clip": [1.0, 0.4, math.inf],
    "c_clip": [1.0, 0.4],
    "pg_rho_clip": [1.0, 2.0],
}
Place = Callable[[np.ndarray, bool], int]  # an array, and whether it is an output, to its address


@dataclass
class Case:
    """One call: arguments of every sequence, in the kernel's dtype; `next_values` is an array or a number."""

    name: str
    layout: str
    dtype: type
    full: bool
    columns: list[dict[str, Any]]
    options: dict[str, Any]

    def __str__(self) -> str:
        lengths = [len(column["rewards"]) for column in self.columns]
        flags = [flag for flag in FLAGS if flag in self.columns[0]]
        return f"{self.name} {self.layout} {lengths} full={self.full} {flags} {self.dtype.__name__} {self.options}"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Elements, sequences and lanes, as the kernels count them."""
        total = sum(len(column["rewards"]) for column in self.columns)
        return (total, 1, len(self.columns)) if self.layout == "time" else (total, len(self.columns), 1)

    def flat(self, parts: list[Any]) -> np.ndarray:
        """Rows of all sequences as they lie in memory."""
        parts = [np.asarray(part) for part in parts]
        return np.ascontiguousarray(np.stack(parts, axis=1)).ravel() if self.layout == "time" else np.concatenate(parts)

    def reference(self, column: dict[str, Any], scale: bool = False) -> tuple[np.ndarray, ...]:
        function = getattr(naive, self.name)
        given = {key: column.get(key) for key in (*ARGUMENTS[self.name], *FLAGS)}
        with np.errstate(all="ignore"):
            if scale:
                return naive.absolute(function, given, self.options)
            results = function(**given, **self.options)
        return results if isinstance(results, tuple) else (results,)

    def check(self, outputs: list[np.ndarray]) -> None:
        """Rule 13's bound, and NaN and infinity where the reference has them."""
        lambdas = [self.options[key] for key in ("gae_lambda", "td_lambda", "trace_lambda") if key in self.options]
        factor = math.prod(lambdas) * self.options["gamma"]
        length = max((len(column["rewards"]) for column in self.columns), default=0)
        steps = length if factor >= 1 else min(length, 1 / (1 - factor))
        info = np.finfo(self.dtype)
        expected = zip(*(self.reference(column) for column in self.columns), strict=True)
        scales = zip(*(self.reference(column, scale=True) for column in self.columns), strict=True)
        for output, wanted, size in zip(outputs, expected, scales, strict=True):
            want, bound = self.flat(list(wanted)), 4 * info.eps * steps * self.flat(list(size)) + length * info.tiny
            finite = np.isfinite(want)
            np.testing.assert_array_equal(output[~finite], want[~finite], err_msg=str(self))
            error = np.abs(output.astype(np.float64) - want)[finite]
            assert np.all(error <= bound[finite]), (
                f"{self}: off by {error.max()}, at {np.argmax(error - bound[finite])}"
            )

    def prepare(self, place: Place) -> tuple[Callable[[int, int], None], list[np.ndarray]]:
        """Lay the arguments out: the call that is left, of a stream and a device, and the arrays given for outputs."""
        total, names = self.sizes[0], ("log_ratios",) if self.name in RATIOS else ()
        values = "q_values" if self.name == "retrace" else "values"
        addresses = []
        for key in (*names, "rewards", values, "next_values", "last_values", *FLAGS, "cu_seqlens"):
            array: np.ndarray | None = None
            if key == "cu_seqlens":
                if self.layout == "packed":
                    lengths = [len(column["rewards"]) for column in self.columns]
                    array = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            elif key == "last_values":
                if not self.full:
                    array = np.array([column["next_values"] for column in self.columns], self.dtype)
            elif key in self.columns[0] and (key != "next_values" or self.full):
                array = self.flat([column[key] for column in self.columns])
            addresses.append(0 if array is None else place(array, False))
        outputs = [np.full(total, 77, self.dtype) for _ in range(2 if self.name in TWO_OUTPUTS else 1)]
        scratch = np.full(kernels.carries_size(*self.sizes), 77, self.dtype)
        addresses += [place(output, True) for output in outputs]
        scalars = [self.options[key] for key in OPTIONS[self.name]]
        carries = place(scratch, True) if scratch.size else 0

        def call(stream: int, device: int) -> None:
            kernels.ESTIMATORS[self.name](
                *addresses, *self.sizes, *scalars, *MORE.get(self.name, ()), self.dtype(0), carries, stream, device
            )

        return call, outputs

    def call(self, place: Place, stream: int = 0, device: int = 0) -> list[np.ndarray]:
        """Lay the arguments out, call the kernel, and return the arrays given for its outputs."""
        call, outputs = self.prepare(place)
        call(stream, device)
        return outputs


ARGUMENTS: dict[str, tuple[str, ...]] = {
    "gae": ("rewards", "values", "next_values"),
    "discounted_returns": ("rewards", "next_values"),
    "lambda_returns": ("rewards", "values", "next_values"),
    "n_step_returns": ("rewards", "values", "next_values"),
    "vtrace": ("log_ratios", "rewards", "values", "next_values"),
    "retrace": ("log_ratios", "rewards", "q_values", "next_values"),
}


def make(
    name: str, layout: str, full: bool, dtype: type, generator: np.random.Generator, sizes: tuple[int, ...] = SIZES,
    counts: tuple[int, ...] = SIZES, flags: tuple[str, ...] | None = None, poison: bool = True,
) -> Case:  # fmt: skip
    """A random call of so many sequences of such lengths; `poison`: NaN stands where the reference does not look."""
    count = 1 if layout == "single" else int(generator.choice(counts))
    if layout == "packed":
        lengths = [int(x) for x in generator.choice((0, *sizes), size=count)]
        lengths[0] = lengths[0] or 1
    else:
        lengths = [int(generator.choice(sizes))] * count
    if flags is None:
        flags = FLAG_SETS[generator.integers(len(FLAG_SETS))]
    flags = tuple(flag for flag in flags if full or flag != "truncated")
    options: dict[str, Any] = {key: generator.choice(CHOICES[key]) for key in OPTIONS[name] if key != "n"}
    if name == "n_step_returns":
        options["n"] = int(generator.choice([1, 2, 3, 8, 40]))
    without_values = full and name in ("lambda_returns", "n_step_returns") and generator.random() < 0.5
    probability = generator.choice([0.05, 0.3, 0.7])
    columns = []
    for length in lengths:
        column: dict[str, Any] = {
            key: generator.normal(size=length).astype(dtype)
            for key in ARGUMENTS[name]
            if key != "next_values" and not (without_values and key == "values")
        }
        column["next_values"] = generator.normal(size=length).astype(dtype) if full else dtype(generator.normal())
        for flag in flags:
            chance = 1 - probability / 2 if flag == "mask" else probability
            column[flag] = (generator.random(length) < chance) * generator.choice([1, 2, 255], size=length)
            column[flag] = column[flag].astype(np.uint8)
        columns.append(column)
    case = Case(name, layout, dtype, full, columns, options)
    if poison:
        for column in columns:
            poison_unread(case, column)
    return case


def poison_unread(case: Case, column: dict[str, Any]) -> None:
    """NaN in every number that the reference does not look at."""
    records = {key: naive.Recorder(x) for key, x in column.items() if np.ndim(x) == 1}
    case.reference({**column, **records})
    for key, record in records.items():
        if key not in FLAGS:
            column[key][~record.read] = np.nan
