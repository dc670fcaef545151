"""Replay buffers of other libraries, each called as its users call it, with data in the kind and layout it asks for.

Each function fills a buffer and gives its calls. What is prepared beforehand (batches, tensors, device arrays, info
dicts) is not timed, and neither is filling: some are filled through their own arrays, which is said there. Random seeds
change from call to call, since a repeated draw would be answered from the cache.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.replay_cases import (
    ACTION,
    ALPHA,
    BETA,
    EPISODE,
    FRAME_SHAPE,
    GAMMA,
    N_STEP,
    OBSERVATION,
    STACK,
    WINDOW,
    WINDOWS,
    Setting,
    Steps,
    make_steps,
)

STEPS = 250  # different ones that are added in turn; the last ends its episode

Read = Callable[[Any], Mapping[str, Any]]


class NotOfferedError(Exception):
    """The library has no such buffer or operation."""


@dataclass
class Calls:
    """What is timed, by operation and then by the caller's name; `read` turns a sampled batch into named arrays."""

    calls: dict[str, dict[str, Callable[[], Any]]] = field(default_factory=dict)
    reads: dict[str, Read] = field(default_factory=dict)
    rows: np.ndarray | None = None  # the buffer's own memory, where a second one like it would be too large
    wrong_ends: dict[str, str] = field(default_factory=dict)  # who is wrong at an episode's end, and how

    def put(self, operation: str, name: str, call: Callable[[], Any], read: Read | None = None) -> None:
        self.calls.setdefault(operation, {})[name] = call
        if read is not None:
            self.reads[name] = read


def going_on(setting: Setting, steps: Steps, prepare: Callable[..., Any]) -> Iterator[Any]:
    """Prepared steps for ever, from where the filled buffer stands: so few that they stay in a cache."""
    count = len(steps.rewards)
    start = setting.capacity // setting.num_envs % count
    prepared = []
    for t in range(start, start + STEPS):
        *arrays, truncated = (array[t % count] for array in steps.arrays)
        prepared.append(prepare(*arrays, truncated | (t == start + STEPS - 1)))
    return itertools.cycle(prepared)


def batch_sizes(setting: Setting, kind: str) -> list[tuple[str, int]]:
    return [(name, size) for name, size in setting.operations.items() if name.startswith(kind)]


def filling(setting: Setting) -> Steps:
    return make_steps(setting.num_envs).rows(setting.capacity // setting.num_envs)


def frames(setting: Setting) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One episode after another: its stacks `(EPISODE + 1, STACK, 84, 84)` and frame numbers; frame t is t % 251."""
    for start in range(0, setting.capacity, EPISODE):
        numbers = np.arange(start, start + EPISODE + 1)
        stacked = np.maximum(numbers[:, None] + np.arange(1 - STACK, 1), start)
        values = (stacked % 251).astype(np.uint8)
        yield np.broadcast_to(values[..., None, None], (*values.shape, *FRAME_SHAPE)), numbers


def frame_ends() -> np.ndarray:
    ends = np.zeros(EPISODE, np.bool_)
    ends[-1] = True
    return ends


def rlox(setting: Setting) -> Calls:
    import rlox

    if setting.kind in ("n_step", "frames", "tiny"):
        raise NotOfferedError("no such buffer")
    calls, seed = Calls(), itertools.count()
    steps, rows = make_steps(setting.num_envs), filling(setting)
    names = ("obs", "actions", "rewards", "next_obs", "terminated")

    def read(batch: Any) -> Mapping[str, Any]:
        fields = ("observations", "actions", "rewards", "next_observations", "terminated")
        return {to: batch[name] for to, name in zip(fields, names, strict=True)}

    def one(o: Any, a: Any, r: Any, n: Any, te: Any, tr: Any) -> tuple[Any, ...]:
        return o[0], a[0], float(r[0]), bool(te[0]), bool(tr[0]), n[0]

    def many(o: Any, a: Any, r: Any, n: Any, te: Any, tr: Any) -> tuple[Any, ...]:
        return o.ravel(), n.ravel(), a.ravel(), r, te.view(np.uint8), tr.view(np.uint8)

    if setting.kind == "plain":
        buffer = rlox.ReplayBuffer(setting.capacity, OBSERVATION, ACTION)
        buffer.push_batch(*many(*rows.arrays))
        push, prepare = (buffer.push, one) if setting.num_envs == 1 else (buffer.push_batch, many)
    elif setting.kind == "prioritized":
        if setting.num_envs > 1:
            raise NotOfferedError("one transition at a time")
        buffer = rlox.PrioritizedReplayBuffer(setting.capacity, OBSERVATION, ACTION, ALPHA, BETA)
        push, prepare = buffer.push, one
        for t in range(setting.capacity):
            push(*one(*(array[t : t + 1] for array in rows.arrays)))
    else:
        buffer = rlox.SequenceReplayBuffer(setting.capacity, OBSERVATION, ACTION)
        for t in range(setting.capacity):
            o, a, r, te, tr, n = one(*(array[t : t + 1] for array in rows.arrays))
            buffer.push(o, n, a, r, te, tr)
        calls.put(
            "windows",
            "rlox",
            lambda: buffer.sample_sequences(WINDOWS, WINDOW, next(seed)),
            lambda b: {"observations": b["obs"], "actions": b["actions"], "rewards": b["rewards"]},
        )
        return calls
    source = going_on(setting, steps, prepare)
    for operation, _ in batch_sizes(setting, "add"):
        calls.put(operation, "rlox", lambda: push(*next(source)))
    for operation, size in batch_sizes(setting, "sample"):
        calls.put(operation, "rlox", lambda size=size: buffer.sample(size, next(seed)), read)  # type: ignore[misc]
    for operation, size in batch_sizes(setting, "update"):
        batches = drawn([buffer.sample(size, next(seed))["indices"] for _ in range(16)])
        calls.put(operation, "rlox", lambda b=batches: buffer.update_priorities(*next(b)))  # type: ignore[misc]
    return calls


def drawn_pairs(indices: list[Any], dtype: Any = np.float64) -> list[tuple[Any, np.ndarray]]:
    """Sampled indices and new priorities for them."""
    generator = np.random.default_rng(1)
    return [(i, (generator.random(len(i)) + 0.1).astype(dtype)) for i in indices]


def drawn(indices: list[Any], dtype: Any = np.float64) -> Iterator[tuple[Any, np.ndarray]]:
    """The same, in turn for ever."""
    return itertools.cycle(drawn_pairs(indices, dtype))


def cpprb(setting: Setting) -> Calls:
    import cpprb

    calls = Calls()
    names = ("obs", "act", "rew", "next_obs", "terminated", "truncated")
    env: dict[str, Any] = {
        "obs": {"shape": OBSERVATION},
        "act": {"shape": ACTION},
        "rew": {},
        "next_obs": {"shape": OBSERVATION},
        "terminated": {"dtype": np.bool_},
        "truncated": {"dtype": np.bool_},
    }

    def read(batch: Any) -> Mapping[str, Any]:
        fields = ("observations", "actions", "rewards", "next_observations", "terminated")
        return {to: batch[name] for to, name in zip(fields, names, strict=False)}

    if setting.kind == "frames":
        buffer = cpprb_frames(setting, cpprb)
        moved = lambda x: np.moveaxis(x, -1, 1)  # noqa: E731
        calls.put(
            "sample 256",
            "cpprb",
            lambda: buffer.sample(256),
            lambda b: {"observations": moved(b["obs"]), "next_observations": moved(b["next_obs"])},
        )
        return calls
    if setting.kind in ("sequences", "tiny"):
        raise NotOfferedError("no sequences")
    steps, rows = make_steps(setting.num_envs), filling(setting)
    if setting.kind == "prioritized":
        buffer = cpprb.PrioritizedReplayBuffer(setting.capacity, env, alpha=ALPHA)
        buffer.add(**dict(zip(names, rows.arrays, strict=True)))
    elif setting.kind == "n_step":
        # "done" of a target is that of any of its rows; a time limit is told by `on_episode_end`.
        names = (*names[:4], "done", "truncated")
        env["done"] = env.pop("terminated")
        n_step = {"size": N_STEP, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
        buffer = cpprb.ReplayBuffer(setting.capacity, env, Nstep=n_step)
        for start in range(0, setting.capacity, EPISODE):
            part = slice(start, start + EPISODE)
            buffer.add(**{name: array[part] for name, array in zip(names, rows.arrays, strict=True)})
            buffer.on_episode_end()
        calls.wrong_ends["cpprb"] = (
            "the last n rows of an episode: next observations of ones, and `done` wrong in the first of them"
        )
    else:
        buffer = cpprb.ReplayBuffer(setting.capacity, env)
        buffer.add(**dict(zip(names, rows.arrays, strict=True)))
    source = going_on(setting, steps, lambda *step: dict(zip(names, step, strict=True)))
    for operation, _ in batch_sizes(setting, "add"):
        calls.put(operation, "cpprb", lambda: buffer.add(**next(source)))
    beta = (BETA,) if setting.kind == "prioritized" else ()
    for operation, size in batch_sizes(setting, "sample"):
        calls.put(operation, "cpprb", lambda size=size: buffer.sample(size, *beta), read)  # type: ignore[misc]
    for operation, size in batch_sizes(setting, "update"):
        # A copy: its indexes are a view of memory that the next, larger sample frees.
        batches = drawn([buffer.sample(size, BETA)["indexes"].copy() for _ in range(16)])
        calls.put(operation, "cpprb", lambda b=batches: buffer.update_priorities(*next(b)))  # type: ignore[misc]
    return calls


def cpprb_frames(setting: Setting, cpprb: Any) -> Any:
    """Frames and next observations stored once, by its own options; it stacks along the last axis."""
    shape = {"shape": (*FRAME_SHAPE, STACK), "dtype": np.uint8}
    env = {"obs": shape, "act": {"dtype": np.int64}, "rew": {}, "done": {"dtype": np.bool_}}
    buffer = cpprb.ReplayBuffer(setting.capacity, env, next_of="obs", stack_compress="obs")
    for stacks, numbers in frames(setting):
        now = np.moveaxis(stacks, 1, -1)
        rewards = np.zeros(EPISODE, np.float32)
        buffer.add(obs=now[:-1], next_obs=now[1:], act=numbers[:-1], rew=rewards, done=frame_ends())
        buffer.on_episode_end()
    return buffer


def sb3(setting: Setting) -> Calls:
    """Filled through its own arrays: adding a million steps takes ten seconds and more."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

    calls = Calls()
    if setting.kind in ("prioritized", "sequences", "tiny"):
        raise NotOfferedError("no such buffer")
    if setting.kind == "frames":
        buffer = sb3_frames(setting, optimize_memory_usage=True)

        def read_frames(b: Any) -> Mapping[str, Any]:
            return {"observations": b.observations, "next_observations": b.next_observations}

        calls.put("sample 256", "sb3", lambda: buffer.sample(256), read_frames)
        calls.wrong_ends["sb3"] = "optimize_memory_usage returns the next episode's first observation"
        return calls
    steps, rows = make_steps(setting.num_envs), filling(setting)
    space = [spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (OBSERVATION, ACTION)]
    if setting.kind == "n_step":
        buffer = NStepReplayBuffer(setting.capacity, *space, "cpu", n_steps=N_STEP, gamma=GAMMA)
    else:
        buffer = ReplayBuffer(setting.capacity, *space, "cpu", n_envs=setting.num_envs)
    done = rows.terminated | rows.truncated
    arrays = ("observations", "actions", "rewards", "next_observations", "dones", "timeouts")
    for name, values in zip(arrays, (*rows.arrays[:4], done, rows.truncated), strict=True):
        array = getattr(buffer, name)
        array[...] = values.reshape(array.shape)
    buffer.full = True

    def prepare(o: Any, a: Any, r: Any, n: Any, te: Any, tr: Any) -> tuple[Any, ...]:
        return o, n, a, r, te | tr, [{"TimeLimit.truncated": True} if limit else {} for limit in tr]

    source = going_on(setting, steps, prepare)
    for operation, _ in batch_sizes(setting, "add"):
        calls.put(operation, "sb3", lambda: buffer.add(*next(source)))
    for operation, size in batch_sizes(setting, "sample"):
        calls.put(
            operation,
            "sb3",
            lambda size=size: buffer.sample(size),  # type: ignore[misc]
            lambda b: {
                "observations": b.observations,
                "actions": b.actions,
                "rewards": b.rewards,
                "next_observations": b.next_observations,
                "terminated": b.dones,
            },
        )
    return calls


def sb3_frames(setting: Setting, *, optimize_memory_usage: bool) -> Any:
    """Stacks stored whole, four frames each; filled through its own arrays."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer

    space = spaces.Box(0, 255, (STACK, *FRAME_SHAPE), np.uint8)
    buffer = ReplayBuffer(
        setting.capacity,
        space,
        spaces.Discrete(6),
        "cpu",
        optimize_memory_usage=optimize_memory_usage,
        handle_timeout_termination=not optimize_memory_usage,
    )
    for stacks, numbers in frames(setting):
        buffer.observations[numbers[:-1], 0] = stacks[:-1]
        if not optimize_memory_usage:
            buffer.next_observations[numbers[:-1], 0] = stacks[1:]
    buffer.full = True
    return buffer


def tianshou(setting: Setting) -> Calls:
    """Filled through `from_data`'s means: adding a million steps takes a minute."""
    from tianshou.data import (
        Batch,
        PrioritizedReplayBuffer,
        PrioritizedVectorReplayBuffer,
        ReplayBuffer,
        VectorReplayBuffer,
    )

    calls = Calls()
    if setting.kind == "n_step":
        raise NotOfferedError("its algorithms compute n-step targets, together with their networks' values")
    if setting.kind in ("sequences", "tiny"):
        raise NotOfferedError("no sequences")
    if setting.kind == "frames":
        buffer = tianshou_frames(setting)
        calls.put(
            "sample 256",
            "tianshou",
            lambda: buffer.sample(256),
            lambda b: {"observations": b[0].obs, "next_observations": b[0].obs_next},
        )
        calls.wrong_ends["tianshou"] = "ignore_obs_next returns the last observation again"
        return calls
    steps, size = make_steps(setting.num_envs), setting.capacity // setting.num_envs * setting.num_envs
    rows = filling(setting)
    priorities = {"alpha": ALPHA, "beta": BETA}
    if setting.num_envs > 1:
        # Each environment's rows are together there.
        order = np.arange(size).reshape(-1, setting.num_envs).T.ravel()
        rows = Steps(*(array[order] for array in rows.arrays))
        vector = PrioritizedVectorReplayBuffer if setting.kind == "prioritized" else VectorReplayBuffer
        buffer = vector(size, setting.num_envs, **(priorities if setting.kind == "prioritized" else {}))
    else:
        buffer = PrioritizedReplayBuffer(size, **priorities) if setting.kind == "prioritized" else ReplayBuffer(size)
    names = ("obs", "act", "rew", "obs_next", "terminated", "truncated")

    def batch(*arrays: Any) -> Any:
        return Batch(**dict(zip(names, arrays, strict=True)))

    first = [array[:1] if setting.num_envs == 1 else array[0] for array in steps.arrays]
    buffer.add(batch(*(array[0] for array in first)) if setting.num_envs == 1 else batch(*first))
    buffer.reset()
    full = batch(*rows.arrays)
    full.done = rows.terminated | rows.truncated
    buffer.set_batch(full)
    for part in getattr(buffer, "buffers", [buffer]):
        part._size = part.maxsize
    if setting.num_envs > 1:
        buffer._lengths[:] = [part.maxsize for part in buffer.buffers]
    if setting.kind == "prioritized":
        buffer.weight[np.arange(size)] = 1.0

    def one(*arrays: Any) -> Any:
        return batch(*(array[0] for array in arrays))

    source = going_on(setting, steps, one if setting.num_envs == 1 else batch)
    for operation, _ in batch_sizes(setting, "add"):
        calls.put(operation, "tianshou", lambda: buffer.add(next(source)))
    for operation, count in batch_sizes(setting, "sample"):
        calls.put(
            operation,
            "tianshou",
            lambda count=count: buffer.sample(count),  # type: ignore[misc]
            lambda b: {
                "observations": b[0].obs,
                "actions": b[0].act,
                "rewards": b[0].rew,
                "next_observations": b[0].obs_next,
                "terminated": b[0].terminated,
            },
        )
    for operation, count in batch_sizes(setting, "update"):
        batches = drawn([buffer.sample_indices(count) for _ in range(16)])
        calls.put(operation, "tianshou", lambda b=batches: buffer.update_weight(*next(b)))  # type: ignore[misc]
    return calls


def tianshou_frames(setting: Setting) -> Any:
    """Frames stored once, by its own options."""
    from tianshou.data import Batch, ReplayBuffer

    buffer = ReplayBuffer(setting.capacity, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True)
    ends = frame_ends()
    for stacks, numbers in frames(setting):
        for t in range(EPISODE):
            buffer.add(
                Batch(obs=stacks[t], act=numbers[t], rew=0.0, terminated=False, truncated=bool(ends[t]), info={})
            )
    return buffer


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


PEERS: dict[str, tuple[str, Callable[[Setting], Calls]]] = {
    "cpprb": ("cpprb", cpprb),
    "rlox": ("rlox", rlox),
    "sb3": ("stable_baselines3", sb3),
    "tianshou": ("tianshou", tianshou),
    "torchrl": ("torchrl", torchrl),
    "flashbax": ("flashbax", flashbax),
}
