"""Replay buffers of tensors and device arrays: TorchRL, flashbax. See `replay_peers`."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bench.replay_calls import Calls, NotOfferedError, batch_sizes, drawn, drawn_pairs, filling, going_on
from bench.replay_cases import ALPHA, BETA, WINDOW, WINDOWS, Setting, make_steps


def torchrl(setting: Setting) -> Calls:
    import torch
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, PrioritizedSampler, ReplayBuffer, SliceSampler

    warnings.filterwarnings("ignore", module="torchrl")
    torch.set_num_threads(1)
    calls = Calls()
    if setting.kind == "tiny":
        raise NotOfferedError("see the sequences of larger rows")
    if setting.kind == "frames":
        raise NotOfferedError("stacks are stored whole, or rebuilt by a transform from slices")
    if setting.kind == "n_step":
        raise NotOfferedError("MultiStepTransform computes them at insertion: sampling is the plain buffer's")
    steps, rows = make_steps(setting.num_envs), filling(setting)

    def prepare(*arrays: Any) -> Any:
        o, a, r, n, te, tr = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
        r, te, tr = (x[:, None] for x in (r, te, tr))
        after = {"observation": n, "reward": r, "terminated": te, "truncated": tr, "done": te | tr}
        return TensorDict({"observation": o, "action": a, "next": TensorDict(after, [len(o)])}, [len(o)])

    options: dict[str, Any] = {}
    if setting.kind == "prioritized":
        try:
            import torchrl._torchrl  # noqa: F401  (its compiled sum tree)
        except ImportError as error:
            why = str(error).rpartition("so: ")[2][:40]
            raise ImportError(f"its sum tree does not load beside torch {torch.__version__}: {why}...") from error
        options = {"sampler": PrioritizedSampler(setting.capacity, ALPHA, BETA)}
    if setting.kind == "sequences":
        sampler = SliceSampler(num_slices=WINDOWS, end_key=("next", "done"), cache_values=True)
        options = {"sampler": sampler, "batch_size": WINDOWS * WINDOW}
    buffer = ReplayBuffer(storage=LazyTensorStorage(setting.capacity), **options)
    buffer.extend(prepare(*rows.arrays))

    def read(b: Any) -> Mapping[str, Any]:
        after = b["next"]
        return {
            "observations": b["observation"],
            "actions": b["action"],
            "rewards": after["reward"],
            "next_observations": after["observation"],
            "terminated": after["terminated"],
        }

    def one(*arrays: Any) -> Any:
        return prepare(*arrays)[0]

    add, form = (buffer.add, one) if setting.num_envs == 1 else (buffer.extend, prepare)
    source = going_on(setting, steps, form)
    for operation, _ in batch_sizes(setting, "add"):
        calls.put(operation, "torchrl", lambda: add(next(source)))
    for operation, size in batch_sizes(setting, "sample"):
        calls.put(operation, "torchrl", lambda size=size: buffer.sample(size), read)  # type: ignore[misc]
    for operation, size in batch_sizes(setting, "update"):
        indices = [buffer.sample(size, return_info=True)[1]["index"] for _ in range(16)]
        batches = drawn(indices, np.float32)
        calls.put(operation, "torchrl", lambda b=batches: buffer.update_priority(*next(b)))  # type: ignore[misc]
    if setting.kind == "sequences":
        calls.put("windows", "torchrl", lambda: buffer.sample())
        calls.reads["torchrl"] = lambda b: {k: v.reshape(WINDOWS, WINDOW, -1) for k, v in read(b).items()}
    return calls


def flashbax(setting: Setting) -> Calls:
    """Jitted on the CPU, dispatched synchronously, the state donated; keys are split inside, as in a jitted learner.

    Transitions are items with their own next observation: its pairs of neighbours run across an episode's end.
    """
    import flashbax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    calls = Calls()
    if setting.kind in ("frames", "n_step", "tiny"):
        raise NotOfferedError("left to its user")
    steps, rows = make_steps(setting.num_envs), filling(setting)
    names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")

    def prepare(*arrays: Any) -> Any:
        return {name: jnp.asarray(array) for name, array in zip(names, arrays, strict=True)}

    def finish(made: Any) -> tuple[Any, Any]:
        """The filled state and a jitted `add`."""
        state = jax.jit(made.init)({name: value[0] for name, value in prepare(*(a[:1] for a in rows.arrays)).items()})
        add = jax.jit(made.add, donate_argnums=0)
        full = prepare(*rows.arrays)
        if setting.kind == "sequences":
            full = {name: value[None] for name, value in full.items()}
        return add(state, full), add

    held: dict[str, Any] = {"key": jax.random.key(0)}

    def drawing(made: Any) -> Callable[[], Any]:
        sample = jitted_sample(made, setting)

        def draw() -> Any:
            batch, held["key"] = jax.block_until_ready(sample(held["state"], held["key"]))
            return batch

        return draw

    def changing(function: Any, arguments: Iterator[tuple[Any, ...]]) -> Callable[[], None]:
        def change() -> None:
            held["state"] = jax.block_until_ready(function(held["state"], *next(arguments)))

        return change

    if setting.kind == "sequences":
        made = flashbax.make_trajectory_buffer(
            max_length_time_axis=setting.capacity,
            min_length_time_axis=WINDOW,
            sample_batch_size=WINDOWS,
            add_batch_size=1,
            sample_sequence_length=WINDOW,
            period=1,
        )
        held["state"], _ = finish(made)
        calls.put("windows", "flashbax", drawing(made), lambda b: b.experience)
        calls.wrong_ends["flashbax"] = "windows run across an episode's end"
        return calls

    def make(size: int) -> Any:
        options = {"max_length": setting.capacity, "min_length": 1, "sample_batch_size": size, "add_batches": True}
        if setting.kind == "prioritized":
            return flashbax.make_prioritised_item_buffer(**options, priority_exponent=ALPHA)
        return flashbax.make_item_buffer(**options)

    held["state"], add = finish(make(256))  # it is the same whatever the batch size
    source = going_on(setting, steps, lambda *step: (prepare(*step),))
    for operation, _ in batch_sizes(setting, "add"):
        calls.put(operation, "flashbax", changing(add, source))
    for operation, size in batch_sizes(setting, "sample"):
        made = make(size)
        draw = drawing(made)
        calls.put(operation, "flashbax", draw, lambda b: b.experience)
        if setting.kind == "prioritized":
            pairs = [(i, jnp.asarray(p)) for i, p in drawn_pairs([draw().indices for _ in range(16)], np.float32)]
            update = jax.jit(made.set_priorities, donate_argnums=0)
            calls.put(operation.replace("sample", "update"), "flashbax", changing(update, itertools.cycle(pairs)))
    return calls


def jitted_sample(made: Any, setting: Setting) -> Any:
    import jax

    @jax.jit
    def sample(state: Any, key: Any) -> tuple[Any, Any]:
        key, own = jax.random.split(key)
        batch = made.sample(state, own)
        if setting.kind == "prioritized":  # it leaves the weights to its user
            weights = (setting.capacity * batch.probabilities) ** -BETA
            return batch.replace(probabilities=weights / weights.max()), key
        return batch, key

    return sample
