"""Transitions packed to rows of bytes on a device: one copy brings a step there, one gather brings a batch together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastac.buffers import fields
from fastac.buffers.fields import Field
from fastac.buffers.transfer import Slot, sent, transfer_to

_FLAGS = ("terminated", "truncated", "valid", "cut")
_ALIGNMENT = 8  # of every field: that of the widest dtype
_ROW = 16  # a row's length is a multiple of so many bytes


class Packing:
    """Where each field lies in a row: observations, actions, extra fields, next observations, reward, flags.

    `cut` says that no target goes on from here to the next row, `valid` that the row is no filler.

    Args:
        observations: One field, or fields by name where observations are dicts.
        actions: One field.
        extra: Further fields by name.

    Attributes:
        row: Bytes of a row.
        observed, following: Where observations and next observations are, as slices of a row's bytes.
        offsets: Where each field of `views` begins.
    """

    def __init__(self, observations: Field | dict[str, Field], actions: Field, extra: dict[str, Field]):
        self.observations, self.actions, self.extra = observations, actions, extra
        self._places: list[tuple[str, Field, int]] = []
        offset = 0

        def put(name: str, field: Field) -> None:
            nonlocal offset
            offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
            self._places.append((name, field, offset))
            offset += field.nbytes

        def put_all(name: str) -> slice:
            nonlocal offset
            start = offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
            for key, field in self._observed_fields(name):
                put(key, field)
            return slice(start, offset)

        self.observed = put_all("observations")
        put("actions", actions)
        for name, field in extra.items():
            put(name, field)
        self.following = put_all("next_observations")
        put("rewards", Field("rewards", (), np.dtype(np.float32)))
        for name in _FLAGS:
            self._places.append((name, Field(name, (), np.dtype(np.bool_)), offset))
            offset += 1
        self.row = -(-offset // _ROW) * _ROW
        self.offsets = {name: offset for name, _, offset in self._places}

    @classmethod
    def of_example(cls, example: Mapping[str, Any]) -> Packing:
        """The packing of one transition, as `ReplayBuffer.from_example` takes it."""
        for name in ("observations", "actions"):
            if name not in example:
                raise ValueError(f"example: got {sorted(example)}, expected it to hold {name!r}")
        observations = example["observations"]
        known: Field | dict[str, Field] = (
            {name: fields.field_of_example(f"observations[{name!r}]", x) for name, x in observations.items()}
            if isinstance(observations, Mapping)
            else fields.field_of_example("observations", observations)
        )
        others = {
            name: fields.field_of_example(name, x)
            for name, x in example.items()
            if name not in fields.STANDARD and name != "mask"
        }
        extra = fields.extra_fields({name: (field.shape, field.dtype) for name, field in others.items()})
        return cls(known, fields.field_of_example("actions", example["actions"]), extra)

    def _observed_fields(self, name: str) -> list[tuple[str, Field]]:
        known = self.observations
        if not isinstance(known, dict):
            return [(name, Field(name, known.shape, known.dtype))]
        keys = {key: f"{name}[{key!r}]" for key in known}
        return [(keys[key], Field(keys[key], field.shape, field.dtype)) for key, field in known.items()]

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Every field of rows `(B, row)` by name, `(B, *shape)`: views of the same memory."""
        found = {}
        for name, field, offset in self._places:
            part = rows[:, offset : offset + field.nbytes].view(_torch_dtype(field.dtype))
            found[name] = part.view(len(rows), *field.shape) if field.shape else part[:, 0]
        return found

    def observations_of(self, views: Mapping[str, Tensor], name: str) -> Any:
        """Observations, or next observations, as the caller knows them: a tensor or a dict of such."""
        if not isinstance(self.observations, dict):
            return views[name]
        return {key: views[f"{name}[{key!r}]"] for key in self.observations}

    def items(
        self, observations: Any, actions: Any, rewards: Any, next_observations: Any, terminated: Any, truncated: Any,
        mask: Any, extra: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """What was given, by the names of `views`, its structure checked; `cut` is left out."""
        if extra.keys() != self.extra.keys():
            raise ValueError(f"extra: got the fields {sorted(extra)}, expected {sorted(self.extra)}")
        found: dict[str, Any] = {"actions": actions, "rewards": rewards, **extra}
        for name, given in (("observations", observations), ("next_observations", next_observations)):
            known = self.observations
            if not isinstance(known, dict):
                found[name] = given
                continue
            if not isinstance(given, Mapping):
                raise TypeError(f"{name}: got {type(given).__name__}, expected a dict with {list(known)}")
            if given.keys() != known.keys():
                raise ValueError(f"{name}: got {list(given)}, expected {list(known)}")
            found |= {f"{name}[{key!r}]": given[key] for key in known}
        return found | {"terminated": terminated, "truncated": truncated, "valid": mask}

    def uploader(self, num_envs: int | None, device: torch.device) -> Uploader:
        """What brings steps to the device."""
        return Uploader(self, num_envs, device)

    def state(self) -> dict[str, Any]:
        """What rebuilds it, for JSON."""

        def of(field: Field) -> list[Any]:
            return [field.name, list(field.shape), field.dtype.str]

        known = self.observations
        observations = {name: of(field) for name, field in known.items()} if isinstance(known, dict) else of(known)
        extra = [[name, of(field)] for name, field in self.extra.items()]
        return {"observations": observations, "actions": of(self.actions), "extra": extra}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Packing:
        """The inverse of `state`."""

        def field(entry: list[Any]) -> Field:
            return Field(entry[0], tuple(entry[1]), np.dtype(entry[2]))

        known = state["observations"]
        observations = (
            {name: field(entry) for name, entry in known.items()} if isinstance(known, dict) else field(known)
        )
        return cls(observations, field(state["actions"]), {name: field(entry) for name, entry in state["extra"]})


class Uploader:
    """Packs what `add` was given into rows on the device: `rows = uploader(items)`, then `done()`.

    Arrays are packed on the host, in pinned memory, and cross in one copy; there are two such blocks, so that the host
    packs a step while the one before is on its way. Tensors on the device are packed there.
    """

    def __init__(self, packing: Packing, num_envs: int | None, device: torch.device):
        self._packing, self._num_envs, self._device = packing, num_envs, device
        self._slots: list[Slot[NDArray[Any]]] = []
        self._turn = 0
        if num_envs is not None:
            self._transfer = transfer_to(device)
            example = np.zeros((num_envs, packing.row), np.uint8)
            self._slots = [Slot(example, self._transfer) for _ in range(2)]

    def __call__(self, items: Mapping[str, Any]) -> Tensor:
        """Returns rows `(B, row)` on the device, good until `done`."""
        there = any(isinstance(x, Tensor) and x.device.type != "cpu" for x in items.values())
        if there:
            return self._packed_there(items)
        clean = self._checked(items)
        count = len(clean["rewards"])
        if not self._slots:
            block = np.zeros((count, self._packing.row), np.uint8)
            self._pack(clean, block)
            return sent(torch.from_numpy(block), self._device)
        slot = self._slots[self._turn]
        self._transfer.reuse(slot)
        slot.out[...] = 0
        self._pack(clean, slot.out)
        self._transfer.upload(slot)
        self._transfer.receive(slot)
        batch: Any = slot.batch
        return batch  # type: ignore[no-any-return]

    def done(self) -> None:
        """The rows have been read, as far as queued work goes."""
        if self._slots:
            self._transfer.release(self._slots[self._turn])
            self._turn = 1 - self._turn

    def _checked(self, items: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        rows, clean = self._num_envs, {}
        for name, field, _ in self._packing._places:
            if name not in _FLAGS:
                wide = np.dtype(np.float64) if name == "rewards" else field.dtype
                clean[name] = fields.converted(Field(name, field.shape, wide), items[name], rows)
            elif name == "valid" and items[name] is None:
                clean[name] = np.ones(rows or 0, np.bool_)
            elif name != "cut":
                clean[name] = fields.flags("mask" if name == "valid" else name, items[name], rows)
            rows = len(next(iter(clean.values())))
        clean["cut"] = clean["terminated"] | clean["truncated"] | ~clean["valid"]
        if self._num_envs is None:
            clean["cut"][:] = True
        return clean

    def _pack(self, clean: Mapping[str, NDArray[Any]], block: NDArray[np.uint8]) -> None:
        views = self._packing.views(torch.from_numpy(block))
        for name, view in views.items():
            view.numpy()[...] = clean[name]

    def _packed_there(self, items: Mapping[str, Any]) -> Tensor:
        count = self._num_envs
        if count is None:
            count = len(items["rewards"])
        rows = torch.zeros((count, self._packing.row), dtype=torch.uint8, device=self._device)
        views = self._packing.views(rows)
        for name, field, _ in self._packing._places:
            given = items.get(name)
            if name == "cut" or (name == "valid" and given is None):
                continue
            found = sent(torch.as_tensor(given).detach(), self._device)
            if found.shape != (count, *field.shape):
                asked = "mask" if name == "valid" else name
                raise ValueError(f"{asked}: got shape {tuple(found.shape)}, expected {(count, *field.shape)}")
            if found.is_floating_point() and field.dtype.kind not in "fb":
                raise TypeError(f"{name}: got dtype {found.dtype}, expected what {field.dtype} can hold")
            views[name].copy_(found != 0 if name in _FLAGS else found)
        if items["valid"] is None:
            views["valid"].fill_(True)
        cut = views["terminated"] | views["truncated"] | ~views["valid"]
        views["cut"].copy_(torch.ones_like(cut) if self._num_envs is None else cut)
        return rows


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    found: torch.dtype | None = _DTYPES.get(dtype)
    if found is None:
        found = _DTYPES[dtype] = torch.from_numpy(np.empty(0, dtype)).dtype
    return found


_DTYPES: dict[np.dtype[Any], torch.dtype] = {}
