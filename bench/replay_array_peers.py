"""Replay buffers in NumPy: Stable-Baselines3, tianshou. See `replay_peers`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.replay_calls import Calls, NotOfferedError, batch_sizes, drawn, filling, frame_ends, frames, going_on
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
    Setting,
    Steps,
    make_steps,
)


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
