"""Replay buffers in Rust and C++: rlox, cpprb. See `replay_peers`."""

import itertools
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
    WINDOW,
    WINDOWS,
    Setting,
    make_steps,
)


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
