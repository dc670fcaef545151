"""Replay buffers: fastac, the buffers of other libraries and the limits of memory, in nanoseconds per transition.

Observations of 17 and actions of 6 floats, a million transitions, the buffer full; images: 84 x 84 x 4 bytes in a
smaller buffer. Every library is called from Python, as its users call it (`replay_peers`), on one core, and its batches
are held against what was added first.
"""

import gc
import importlib
import itertools
import resource
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench import record, replay_memory, timing
from bench.replay_calls import Calls, NotOfferedError, batch_sizes, drawn, going_on
from bench.replay_cases import (
    ACTION,
    ALPHA,
    BETA,
    GAMMA,
    N_STEP,
    OBSERVATION,
    SETTINGS,
    WINDOW,
    WINDOWS,
    Setting,
    check,
    make_steps,
)
from bench.replay_limits import limits
from bench.replay_memory import make_frames
from bench.replay_peers import PEERS

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated")
CHECKED = 8  # batches of each that are held against what was added


def make_buffer(setting: Setting) -> Any:
    """Our buffer of this setting, full."""
    from gymnasium import spaces

    from fastac.buffers.prioritized import PrioritizedReplayBuffer
    from fastac.buffers.replay import ReplayBuffer
    from fastac.buffers.sequence import SequenceReplayBuffer

    envs = {"num_envs": setting.num_envs}
    space = [spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (OBSERVATION, ACTION)]
    buffer: Any
    if setting.kind == "frames":
        return make_frames(setting)
    if setting.kind == "tiny":
        example = {"observations": np.zeros(1, np.uint8), "actions": np.uint8(0)}
        buffer = SequenceReplayBuffer.from_example(setting.capacity, example, length=WINDOW, **envs)
        fill_tiny(setting, buffer)
        return buffer
    if setting.kind == "sequences":
        buffer = SequenceReplayBuffer(setting.capacity, *space, length=WINDOW, **envs)
    elif setting.kind == "prioritized":
        buffer = PrioritizedReplayBuffer(setting.capacity, *space, alpha=ALPHA, beta=BETA, **envs)
    else:
        n_step = N_STEP if setting.kind == "n_step" else 1
        buffer = ReplayBuffer(setting.capacity, *space, n_step=n_step, gamma=GAMMA, **envs)
    steps = make_steps(setting.num_envs)
    prepared = list(zip(*steps.arrays, strict=True))
    for step in itertools.islice(itertools.cycle(prepared), setting.capacity // setting.num_envs):
        buffer.add(*step)
    return buffer


def fill_tiny(setting: Setting, buffer: Any) -> None:
    """Rows of two bytes and a reward; observations count up to 255 and begin again; episodes of 1024 rows."""
    envs = setting.num_envs
    flags = [np.full(envs, end) for end in (False, True)]
    steps = []
    for t in range(1024):
        now, following = (np.full((envs, 1), (t + k) % 256, np.uint8) for k in (0, 1))
        steps.append((now, now[:, 0], np.zeros(envs, np.float32), following, flags[0], flags[t == 1023]))
    for step in itertools.islice(itertools.cycle(steps), setting.capacity // envs):
        buffer.add(*step)


def fastac(setting: Setting) -> Calls:
    """Fresh arrays, fresh tensors, and an earlier result filled again."""
    calls, buffer = Calls(), make_buffer(setting)
    adding = batch_sizes(setting, "add")
    if setting.kind == "tiny":
        calls.rows = buffer._replay._storage.arrays["rows"].reshape(-1).view(np.uint64)
    source = going_on(setting, make_steps(setting.num_envs), lambda *step: step) if adding else iter(())
    for operation, _ in adding:
        calls.put(operation, "fastac", lambda: buffer.add(*next(source)))

    def read(batch: Any) -> Mapping[str, Any]:
        return {name: getattr(batch, name) for name in FIELDS}

    def read_windows(batch: Any) -> Mapping[str, Any]:
        return {name: np.moveaxis(np.asarray(getattr(batch, name)), 0, 1) for name in FIELDS}

    sampling = [*batch_sizes(setting, "sample"), *((name, WINDOWS) for name, _ in batch_sizes(setting, "windows"))]
    for operation, size in sampling:
        out = buffer.sample(size)
        forms: dict[str, dict[str, Any]] = {
            "fastac": {},
            "fastac_out": {"out": out},
            "fastac_tensors": {"device": "cpu"},
        }
        for name, options in forms.items():
            call = lambda size=size, options=options: buffer.sample(size, **options)  # noqa: E731
            calls.put(operation, name, call, read_windows if operation == "windows" else read)
    for operation, size in batch_sizes(setting, "update"):
        batches = drawn([buffer.sample(size).indices for _ in range(16)])
        calls.put(operation, "fastac", lambda b=batches: buffer.update_priorities(*next(b)))  # type: ignore[misc]
    return calls


def missing() -> dict[str, str]:
    """Peers that cannot be imported, and why."""
    absent = {}
    for name, (module, _) in PEERS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken peer must not stop the others
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return absent


def checked(setting: Setting, calls: Calls) -> Calls:
    """The same, once a few batches of each were right."""
    for operation, callers in calls.calls.items():
        for name, call in callers.items():
            if name in calls.reads and not operation.startswith(("add", "update")):
                for _ in range(CHECKED):
                    check(setting, calls.reads[name](call()), ends=name not in calls.wrong_ends)
    return calls


def measure(setting: Setting, absent: Mapping[str, str], seconds: float) -> list[dict[str, Any]]:
    """One result for each operation of a setting: everyone's times, and who did not take part and why."""
    made, not_offered, failed = [checked(setting, fastac(setting))], {}, {}
    for name, (_, factory) in PEERS.items():
        if name in absent:
            continue
        try:
            made.append(checked(setting, factory(setting)))
        except NotOfferedError as reason:
            not_offered[name] = str(reason)
        except Exception as error:  # a peer that fails is reported and stops nobody else
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    results = []
    for operation, transitions in setting.operations.items():
        calls: dict[str, Callable[[], Any]] = {}
        for library in made:
            calls |= library.calls.get(operation, {})
        calls |= limits(setting, operation, made[0].rows)
        samples = timing.interleave(calls, seconds=seconds, rounds=9)
        results.append(
            {
                "kind": setting.kind,
                "operation": operation,
                "num_envs": setting.num_envs,
                "capacity": setting.capacity,
                "transitions": transitions,
                "rounds": len(samples["fastac"]),
                "contenders": timing.summarise(samples, "fastac"),
                "not_offered": not_offered,
                "failed": failed,
                "wrong_ends": {name: why for library in made for name, why in library.wrong_ends.items()},
            }
        )
    return results


def main(seconds: float) -> None:
    absent = missing()
    for name, reason in absent.items():
        print(f"missing: {name} ({reason})", flush=True)
    results = []
    for setting in SETTINGS:
        for result in measure(setting, absent, seconds):
            results.append(result)
            shown = "  ".join(
                f"{name} {entry['median_ns'] / result['transitions']:.1f}"
                for name, entry in result["contenders"].items()
            )
            print(f"{setting.title}, {result['operation']}, ns a transition: {shown}", flush=True)
        for name, why in (result["failed"] | result["wrong_ends"]).items():
            print(f"    {name}: {why}", flush=True)
        gc.collect()
    memory = replay_memory.measure(absent)
    for name, size in memory["bytes_per_transition"].items():
        print(f"stacked frames, bytes a transition: {name} {size:,.0f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
    print(f"the benchmark's own peak: {peak / 2**30:.1f} GiB")
    record.write(
        record.RESULTS / "replay.json",
        {
            "command": "python -m bench replay",
            "machine": record.machine(),
            "method": "interleaved rounds; CPU ns per call (median, quartiles); median per-round time over fastac's;"
            " every batch of the first few held against what was added",
            "missing": absent,
            "results": results,
            "memory": memory,
            "peak_bytes": peak,
        },
    )
