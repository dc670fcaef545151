"""Which fields a transition has, and where each lies in a packed row of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

STANDARD = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
RESULTS = ("discounts", "indices", "weights", "extra")
MOST_DIMENSIONS = 8  # what a kernel's description of an array has room for


@dataclass(frozen=True)
class Field:
    """One array of a transition: `name` as errors give it, shape of one row's part, dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __post_init__(self) -> None:
        if self.dtype.kind not in "biuf":
            raise TypeError(f"{self.name}: got dtype {self.dtype}, expected bool, integer or float")
        if len(self.shape) > MOST_DIMENSIONS:
            raise ValueError(f"{self.name}: got {len(self.shape)} dimensions, expected at most {MOST_DIMENSIONS}")
        if math.prod(self.shape) == 0:
            raise ValueError(f"{self.name}: got shape {self.shape}, expected at least one element")

    @property
    def nbytes(self) -> int:
        """Bytes of one row's part."""
        return math.prod(self.shape) * self.dtype.itemsize


def _aligned(size: int, step: int) -> int:
    return -(-size // step) * step


class Layout:
    """The packed row: observation, action and extra fields, reward, flags; then what a kind of ring needs.

    Independent rows end with the next observation, chained ones with its place in the side table. Short rows are padded
    to a power of two, longer ones to cache lines of 64 bytes.

    Args:
        observations: One field, or fields by name where observations are dicts.
        actions: One field.
        extra: Further fields by name.
        chained: Whether next observations are stored once.
        frame_stack: How many frames an observation stacks along its first dimension; each row stores the newest.

    Attributes:
        leaves: Offset in the row and bytes, for observation fields, then action and extra fields, then, in independent
            rows, next observation fields.
        observation_bytes: Bytes that observation fields take together.
        reward: Offset of the reward; flags follow it.
        following: Offset of the next observation, or of its place in the side table.
        row: Bytes of a row.
    """

    def __init__(
        self, observations: Field | dict[str, Field], actions: Field, extra: dict[str, Field], *,
        chained: bool, frame_stack: int = 1,
    ):  # fmt: skip
        self.observations, self.actions, self.extra = observations, actions, extra
        self.chained, self.frame_stack = chained, frame_stack
        fields = list(observations.values()) if isinstance(observations, dict) else [observations]
        for field in fields if frame_stack > 1 else []:
            if field.shape[:1] != (frame_stack,):
                raise ValueError(
                    f"{field.name}: got shape {field.shape}, expected {frame_stack} frames (frame_stack) in the first "
                    "dimension"
                )
        self.observation_fields, self.row_fields = fields, [actions, *extra.values()]
        offset = 0
        self.leaves: list[tuple[int, int]] = []
        for field in self.observation_fields:
            size = field.nbytes // frame_stack
            self.leaves.append((offset, size))
            offset = _aligned(offset + size, 8)
        self.observation_bytes = offset
        for field in self.row_fields:
            self.leaves.append((offset, field.nbytes))
            offset = _aligned(offset + field.nbytes, 4)
        self.reward = offset
        self.following = _aligned(self.reward + 6, 8)
        end = self.following + 8
        if not chained:
            self.leaves += [(self.following + at, size) for at, size in self.leaves[: len(fields)]]
            end = self.following + self.observation_bytes
        elif frame_stack > 1:
            end += 8
        self.row = _aligned(end, 64) if end > 32 else 16 if end <= 16 else 32

    def state(self) -> dict[str, Any]:
        """What rebuilds it, for JSON."""

        def of(field: Field) -> list[Any]:
            return [field.name, list(field.shape), field.dtype.str]

        observations = self.observations
        return {
            "observations": {name: of(field) for name, field in observations.items()}
            if isinstance(observations, dict)
            else of(observations),
            "actions": of(self.actions),
            "extra": [[name, of(field)] for name, field in self.extra.items()],
            "chained": self.chained,
            "frame_stack": self.frame_stack,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Layout:
        """The inverse of `state`."""

        def field(entry: list[Any]) -> Field:
            return Field(entry[0], tuple(entry[1]), np.dtype(entry[2]))

        observations = state["observations"]
        return cls(
            {name: field(entry) for name, entry in observations.items()}
            if isinstance(observations, dict)
            else field(observations),
            field(state["actions"]),
            {name: field(entry) for name, entry in state["extra"]},
            chained=state["chained"],
            frame_stack=state["frame_stack"],
        )


def field_of_space(name: str, space: Any) -> Field:
    """A Gymnasium space's field; float64 becomes float32, which is what networks take."""
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None or np.dtype(dtype).kind not in "biuf":
        raise TypeError(f"{name}: got {space!r}, expected a Box, Discrete, MultiDiscrete or MultiBinary space")
    dtype = np.dtype(dtype)
    return Field(name, tuple(shape), np.dtype(np.float32) if dtype == np.float64 else dtype)


def observations_of_space(space: Any) -> Field | dict[str, Field]:
    """The observation fields of a space, which may be a Dict of simple spaces."""
    spaces = getattr(space, "spaces", None)
    if isinstance(spaces, Mapping):
        return {name: field_of_space(f"observations[{name!r}]", part) for name, part in spaces.items()}
    return field_of_space("observations", space)


def field_of_example(name: str, example: Any) -> Field:
    """The field of one transition's part."""
    array = array_of(name, example)
    return Field(name, array.shape, array.dtype)


def array_of(name: str, value: Any) -> NDArray[Any]:
    """`value` as an array, tensors included."""
    detach = getattr(value, "detach", None)
    if detach is not None:
        value = detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: got a ragged sequence, expected an array") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: got dtype {array.dtype}, expected numbers or bools")
    return array


def extra_fields(fields: Mapping[str, tuple[tuple[int, ...], DTypeLike]] | None) -> dict[str, Field]:
    """Checked extra fields."""
    found = {}
    for name, (shape, dtype) in (fields or {}).items():
        if name in STANDARD or name in RESULTS or name == "mask" or not name.isidentifier():
            raise ValueError(f"extra_fields: got the name {name!r}, expected an identifier that no other field has")
        found[name] = Field(name, tuple(shape), np.dtype(dtype))
    return found


def converted(field: Field, value: Any, rows: int | None) -> NDArray[Any]:
    """`value` as C-contiguous memory of the field's dtype, `(rows, *shape)`; the batch may be missing for one row.

    Args:
        field: What is expected.
        value: An array, a tensor, or what numpy makes an array of.
        rows: How many; None: any number.

    Raises:
        ValueError: Another shape.
        TypeError: A dtype that cannot hold the values.
    """
    array = array_of(field.name, value)
    if array.shape == field.shape and (rows is None or rows == 1):
        array = array[None]
    if (
        array.shape[1:] != field.shape
        or array.ndim != len(field.shape) + 1
        or (rows is not None and len(array) != rows)
    ):
        wanted = f"({'B' if rows is None else rows}, {', '.join(map(str, field.shape))})".replace(", )", ",)")
        raise ValueError(f"{field.name}: got shape {array.shape}, expected {wanted}")
    if array.dtype == field.dtype:
        return np.ascontiguousarray(array, field.dtype)
    with np.errstate(all="ignore"):
        result = np.ascontiguousarray(array, field.dtype)
    if not np.can_cast(array.dtype, field.dtype, "same_kind") and not np.array_equal(result, array):
        raise TypeError(f"{field.name}: got dtype {array.dtype} with values that {field.dtype} cannot hold")
    return result


def flags(name: str, value: Any, rows: int | None) -> NDArray[np.bool_]:
    """`value` as `(rows,)` bools, not 0 meaning True."""
    array = array_of(name, value)
    if array.ndim == 0 and (rows is None or rows == 1):
        array = array[None]
    if array.ndim != 1 or (rows is not None and len(array) != rows):
        raise ValueError(f"{name}: got shape {array.shape}, expected ({'B' if rows is None else rows},)")
    return np.ascontiguousarray(array != 0)
