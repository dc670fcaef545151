"""Windows against a plain reference: which there are, and what is in them, whatever was added before."""

import copy
import itertools
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastac import gae
from fastac.buffers.replay import ReplayBuffer
from fastac.buffers.saving import ArchiveError
from fastac.buffers.sequence import SequenceReplayBuffer
from fastac.buffers.staging import Staging
from fastac.buffers.window_memory import Sequences
from fastac_kernels import windows as kernels

EXAMPLE = {"observations": np.zeros(2, np.float32), "actions": np.zeros(1, np.int64), "state": np.zeros(3, np.float16)}
ROWS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")


class Plain:
    """All rows in a list; windows by looking at each."""

    def __init__(self, capacity, num_envs, length, windows, burn_in):
        self.steps, self.envs, self.length, self.windows, self.burn_in = [], num_envs, length, windows, burn_in
        self.keep = capacity // num_envs

    def add(self, step):
        self.steps.append(step)

    def goes_on(self, t, e):
        """Whether row t + 1 is the next one of the same episode."""
        row, after = self.steps[t], self.steps[t + 1] if t + 1 < len(self.steps) else None
        if after is None or not row["mask"][e] or not after["mask"][e] or row["terminated"][e] or row["truncated"][e]:
            return False
        return np.array_equal(row["next_observations"][e], after["observations"][e])

    def rows(self, t, e):
        """The rows of the window that begins there, without padding; None if there is none."""
        if not self.steps[t]["mask"][e]:
            return None
        length = 1
        while length < self.length and t + length < len(self.steps):
            if self.windows != "across" and not self.goes_on(t + length - 1, e):
                break
            length += 1
        least = self.burn_in + 1 if self.windows == "padded" else self.length
        return None if length < least else range(t, t + length)

    def starts(self):
        oldest = max(len(self.steps) - self.keep, 0)
        every = itertools.product(range(oldest, len(self.steps)), range(self.envs))
        return [t * self.envs + e for t, e in every if self.rows(t, e) is not None]

    def window(self, start):
        t, e = divmod(start, self.envs)
        rows = list(self.rows(t, e))
        padded = rows + rows[-1:] * (self.length - len(rows))
        window = {name: np.array([self.steps[u][name][e] for u in padded]) for name in (*ROWS, "state")}
        window["mask"] = np.array([k < len(rows) and self.steps[u]["mask"][e] for k, u in enumerate(padded)])
        window["loss_mask"] = window["mask"] & (np.arange(self.length) >= self.burn_in)
        begins = [self.steps[u]["mask"][e] and (u == 0 or not self.goes_on(u - 1, e)) for u in padded]
        window["is_first"] = np.array(begins) & window["mask"]
        for k, u in enumerate(padded):
            breaks = u + 1 < len(self.steps) and not self.goes_on(u, e) and self.steps[u]["mask"][e]
            window["truncated"][k] |= breaks and not self.steps[u]["terminated"][e]
        return window


def stream(rng, num_envs, p_end, p_break, filler):
    """Endless steps: episodes end, streams break, fillers follow ends or come anywhere; observations differ."""
    number = itertools.count()

    def observation():
        return np.float32([next(number), rng.integers(2)])

    now, ended = [observation() for _ in range(num_envs)], np.zeros(num_envs, bool)
    while True:
        terminated, truncated = rng.random((2, num_envs)) < p_end
        mask = ~ended if filler == "after ends" else rng.random(num_envs) >= 0.2 * (filler == "anywhere")
        after = [observation() for _ in range(num_envs)]
        yield {
            "observations": np.stack(now),
            "actions": rng.integers(0, 9, (num_envs, 1)),
            "rewards": rng.random(num_envs).astype(np.float32),
            "next_observations": np.stack(after),
            "terminated": terminated,
            "truncated": truncated,
            "mask": mask,
            "state": rng.random((num_envs, 3)).astype(np.float16),
        }
        ended = (terminated | truncated) & mask
        reset = rng.random(num_envs) < p_break
        if filler != "after ends":
            reset |= ended & (rng.random(num_envs) < 0.9)  # a reset may lead to the very observation of the end
        now = [observation() if fresh else x for fresh, x in zip(reset, after, strict=True)]


def agree(buffer, plain):
    starts = plain.starts()
    head, tail = buffer._index[[kernels.HEAD, kernels.TAIL]]
    assert buffer.num_windows == len(starts)
    assert [int(buffer._queue[i % buffer.capacity]) for i in range(head, tail)] == starts
    if not starts:
        with pytest.raises(ValueError, match=r"no .* window of"):
            buffer.sample(3)
        return
    batch = buffer.gather(starts)
    assert batch.indices.tolist() == starts
    assert batch.weights is None
    for b, start in enumerate(starts):
        window = plain.window(start)
        fillers = ~window["mask"] & (buffer.windows == "across")
        batch.next_observations[fillers, b] = window["next_observations"][fillers]  # a filler leads nowhere
        for name in (*ROWS, "mask", "loss_mask", "is_first"):
            np.testing.assert_array_equal(getattr(batch, name)[:, b], window[name], f"{name} of {start}")
        np.testing.assert_array_equal(batch.extra["state"][:, b], window["state"])
    drawn = buffer.sample(8)
    assert set(drawn.indices.tolist()) <= set(starts)
    same(drawn, buffer.gather(drawn.indices))


@settings(deadline=None, max_examples=150)
@given(
    num_envs=st.integers(1, 3),
    keep=st.integers(1, 12),
    steps=st.integers(1, 40),
    length=st.integers(1, 6),
    burn_in=st.integers(0, 5),
    windows=st.sampled_from(["whole", "padded", "across"]),
    p_end=st.sampled_from([0.0, 0.1, 0.5]),
    p_break=st.sampled_from([0.0, 0.2]),
    filler=st.sampled_from(["none", "after ends", "anywhere"]),
    seed=st.integers(0, 1000),
)
def test_windows_are_those_of_a_plain_reference(
    num_envs, keep, steps, length, burn_in, windows, p_end, p_break, filler, seed
):
    """Row B6: no window crosses the cursor, an episode's end, a break or a filler, unless is_first and mask say so."""
    length, burn_in = min(length, keep), min(burn_in, min(length, keep) - 1)
    capacity = keep * num_envs + seed % num_envs
    options = {"length": length, "windows": windows, "burn_in": burn_in}
    buffer = SequenceReplayBuffer.from_example(capacity, EXAMPLE, num_envs=num_envs, seed=seed, **options)
    plain = Plain(capacity, num_envs, **options)
    rng = np.random.default_rng(seed)
    for t, step in zip(range(steps), stream(rng, num_envs, p_end, p_break, filler), strict=False):
        buffer.add(**step)
        plain.add(step)
        if t % 7 == seed % 7 or t == steps - 1:
            agree(buffer, plain)


def filled(steps=200, num_envs=4, seed=0, capacity=400, **options):
    """A buffer with ends, breaks and fillers, and its reference."""
    alpha = options.pop("alpha", None)
    options = {"length": 5, "windows": "padded", "burn_in": 1, **options}
    buffer = SequenceReplayBuffer.from_example(capacity, EXAMPLE, num_envs=num_envs, seed=seed, alpha=alpha, **options)
    plain = Plain(capacity, num_envs, **options)
    for _, step in zip(
        range(steps), stream(np.random.default_rng(seed), num_envs, 0.1, 0.05, "anywhere"), strict=False
    ):
        buffer.add(**step)
        plain.add(step)
    return buffer, plain


@pytest.mark.parametrize("windows", ["whole", "padded", "across"])
def test_every_window_is_drawn_with_the_same_probability(windows):
    """Chi-square of 100,000 draws, by its normal approximation."""
    buffer, plain = filled(windows=windows, burn_in=0)
    starts, draws = plain.starts(), 100_000
    counts = np.zeros(buffer.added)
    for _ in range(10):
        np.add.at(counts, buffer.sample(draws // 10).indices, 1)
    assert counts.sum() == draws
    expected = draws / len(starts)
    chi_square = ((counts[starts] - expected) ** 2 / expected).sum()
    freedom = len(starts) - 1
    assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)


def leaves_of(buffer):
    """The priorities' leaves by the window's first row."""
    leaves = buffer._replay._tree.leaves
    oldest = max(buffer.added - buffer.capacity, 0)
    return {i: leaves[i % buffer.capacity] for i in range(oldest, buffer.added) if leaves[i % buffer.capacity] > 0}


@settings(deadline=None, max_examples=50)
@given(
    num_envs=st.integers(1, 3),
    keep=st.integers(1, 9),
    length=st.integers(1, 4),
    windows=st.sampled_from(["whole", "padded", "across"]),
    updates=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_priorities_belong_to_windows(num_envs, keep, length, windows, updates, seed):
    """New windows get the largest priority so far; what was overwritten is gone, and its updates are dropped."""
    options = {"length": min(length, keep), "windows": windows, "burn_in": 0}
    buffer = SequenceReplayBuffer.from_example(keep * num_envs, EXAMPLE, num_envs=num_envs, alpha=1.0, **options)
    plain, rng = Plain(keep * num_envs, num_envs, **options), np.random.default_rng(seed)
    expected, largest, stale, seen = {}, 1.0, 0, []
    for _, step in zip(range(25), stream(rng, num_envs, 0.1, 0.1, "anywhere"), strict=False):
        buffer.add(**step)
        plain.add(step)
        starts = plain.starts()
        expected = {i: expected.get(i, largest) for i in starts}
        assert leaves_of(buffer) == expected
        seen = sorted({*seen, *starts})
        if seen and updates:
            chosen = rng.choice(seen, updates)
            values = rng.random(updates) + 0.5 + rng.integers(2)
            buffer.update_priorities(chosen, values)
            for i, value in zip(chosen.tolist(), values.tolist(), strict=True):
                stale += i not in expected
                if i in expected:
                    expected[i], largest = value, max(largest, value)
        assert leaves_of(buffer) == expected
        assert (buffer.stale_updates, buffer.max_priority) == (stale, largest)
        assert buffer.total_priority == pytest.approx(sum(expected.values()))
        if starts:
            batch = buffer.sample(4, beta=0.5)
            drawn = np.array([expected[i] for i in batch.indices.tolist()])
            np.testing.assert_allclose(batch.weights, (drawn / drawn.min()) ** -0.5, rtol=1e-6)


def test_windows_are_drawn_in_proportion_to_their_priorities():
    buffer, plain = filled(alpha=0.7)
    starts = plain.starts()
    priorities = np.random.default_rng(1).random(len(starts)) + 0.01
    buffer.update_priorities(starts, priorities)
    counts = np.zeros(buffer.added)
    for _ in range(400):
        np.add.at(counts, buffer.sample(256).indices, 1)
    expected = counts.sum() * priorities**0.7 / (priorities**0.7).sum()
    chi_square = ((counts[starts] - expected) ** 2 / expected).sum()
    assert counts[starts].sum() == counts.sum()
    assert chi_square < len(starts) + 4.5 * np.sqrt(2 * len(starts))  # stratified draws vary less than independent ones


def test_same_seed_same_windows_also_into_out_and_as_tensors():
    for alpha in (None, 0.5):
        (first, _), (second, _), (other, _) = (filled(alpha=alpha) for _ in range(3))
        into_arrays, into_tensors = first.sample(16), first.sample(16, device="cpu")
        second.sample(16), second.sample(16)
        other.sample(32)
        for _ in range(3):
            expected = second.sample(16)
            assert first.sample(16, out=into_arrays) is into_arrays
            same(into_arrays, expected)
            same(second.sample(16, device="cpu"), first.sample(16, out=into_tensors))
            assert isinstance(into_tensors.rewards, torch.Tensor)
        assert not np.array_equal(other.sample(16).indices, expected.indices)


def same(first, second):
    for name, x, y in zip(Sequences._fields, first, second, strict=True):
        pairs = [(x[key], y[key]) for key in x] if isinstance(x, dict) else [] if x is None else [(x, y)]
        assert (x is None) == (y is None)
        for a, b in pairs:
            assert np.array_equal(np.asarray(a), np.asarray(b)), name


def go_on(buffer, seed):
    """What a buffer does next: its draws, among further rows."""
    batches = []
    for _, step in zip(range(60), stream(np.random.default_rng(seed), 4, 0.1, 0.05, "anywhere"), strict=False):
        buffer.add(**step)
        if buffer.num_windows:
            batches.append(buffer.sample(8))
    return batches


@pytest.mark.parametrize("windows", ["whole", "padded", "across"])
@pytest.mark.parametrize("steps", [0, 20, 250])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_a_loaded_or_copied_buffer_goes_on_bit_for_bit(tmp_path, windows, steps, alpha):
    buffer, _ = filled(steps, windows=windows, seed=2, alpha=alpha)
    if alpha and steps:
        starts = buffer.sample(20).indices
        buffer.update_priorities(starts, np.linspace(0.5, 3.0, 20))
    if steps:
        buffer.sample(3)
    buffer.save(tmp_path / "buffer")
    others = SequenceReplayBuffer.load(tmp_path / "buffer"), copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))
    for other in others:
        assert repr(other) == repr(buffer)
    assert others[0].state_dict() == buffer.state_dict()
    for batches in zip(*[go_on(x, 9) for x in (buffer, *others)], strict=True):
        for batch in batches[1:]:
            same(batch, batches[0])


def test_what_is_loaded_is_of_the_right_kind(tmp_path):
    buffer, _ = filled()
    buffer.save(tmp_path / "sequences")
    with pytest.raises(ArchiveError, match="this is a SequenceReplayBuffer, not a ReplayBuffer"):
        ReplayBuffer.load(tmp_path / "sequences")
    buffer._replay.save(tmp_path / "rows")
    with pytest.raises(ArchiveError, match="holds a ReplayBuffer, not a SequenceReplayBuffer"):
        SequenceReplayBuffer.load(tmp_path / "rows")


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_memory_mapped_rows_are_opened_again_with_windows_of_any_length(tmp_path, alpha):
    folder = tmp_path / "rows"
    buffer = SequenceReplayBuffer.from_example(400, EXAMPLE, num_envs=4, length=5, storage=folder, alpha=alpha)
    plain = Plain(400, 4, length=3, windows="padded", burn_in=1)
    for _, step in zip(range(130), stream(np.random.default_rng(0), 4, 0.1, 0.05, "anywhere"), strict=False):
        buffer.add(**step)
        plain.add(step)
    given = {}
    if alpha is not None:
        given = {i: 0.25 for i in buffer.sample(5).indices.tolist()}
        buffer.update_priorities([*given], [*given.values()])
    buffer.flush()
    buffer.close()
    options = {"length": 3, "windows": "padded", "burn_in": 1, "prioritized": alpha is not None}
    with pytest.raises(ValueError, match="burn_in"):
        SequenceReplayBuffer.open(folder, **{**options, "burn_in": 3})
    again = SequenceReplayBuffer.open(folder, **options)
    starts = plain.starts()
    batch = again.gather(starts)
    for b, start in enumerate(starts):
        for name in ("observations", "rewards", "mask", "is_first", "truncated"):
            assert np.array_equal(getattr(batch, name)[:, b], plain.window(start)[name])
    if alpha is not None:
        assert leaves_of(again) == {**dict.fromkeys(starts, 1.0), **{i: p**alpha for i, p in given.items()}}
    assert set(again.sample(64).indices.tolist()) <= set(starts)
    again.close()


def test_dict_observations_and_one_environment_without_its_dimension():
    example = {"observations": {"image": np.zeros((2, 2), np.uint8), "speed": np.float32(0)}, "actions": np.int64(0)}
    buffer = SequenceReplayBuffer.from_example(20, example, length=2)
    for t in range(5):
        now, after = ({"image": np.full((2, 2), u, np.uint8), "speed": np.float32(u)} for u in (t, t + 1))
        buffer.add(now, np.int64(t), 1.0, after, False, False)
    batch = buffer.gather([1, 3])
    assert batch.observations["image"].shape == (2, 2, 2, 2)
    assert batch.observations["speed"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert batch.next_observations["speed"].tolist() == [[2.0, 4.0], [3.0, 5.0]]
    assert batch.actions.tolist() == [[1, 3], [2, 4]]
    assert repr(buffer) == "SequenceReplayBuffer(5 of 20 transitions, num_envs=1, 4 whole windows of 2)"


@pytest.mark.parametrize("windows", ["whole", "padded", "across"])
def test_estimators_take_windows_as_they_are(windows):
    """Advantages in a window are those of its rows, by the plain definition: no trace leaves an episode."""
    buffer, plain = filled(windows=windows, length=6, seed=5)
    batch = buffer.sample(64)
    values = batch.observations[..., 0] * 0.01
    next_values = batch.next_observations[..., 0] * 0.01
    ends = batch.terminated, batch.truncated, batch.mask
    advantages = gae(batch.rewards, values, next_values, *ends, gamma=0.9, gae_lambda=0.8).advantages
    for b, start in enumerate(batch.indices.tolist()):
        t, e = divmod(start, buffer.num_envs)
        rows = plain.rows(t, e)
        carry = 0.0
        for k, u in reversed(list(enumerate(rows))):
            row = plain.steps[u]
            if not row["mask"][e]:
                carry = 0.0
                continue
            value, after = row["observations"][e][0] * 0.01, row["next_observations"][e][0] * 0.01
            if u + 1 > rows[-1] or not plain.goes_on(u, e):
                carry = 0.0
            delta = row["rewards"][e] + 0.9 * after * (not row["terminated"][e]) - value
            carry = delta + 0.9 * 0.8 * carry
            assert advantages[k, b] == pytest.approx(carry, rel=1e-4, abs=1e-5)


def test_one_writer_and_several_readers_see_no_torn_window():
    """Row B10: every row's fields say the same step, and a window's rows follow one another."""
    example = {"observations": np.zeros(50, np.int64), "actions": np.int64(0), "copy": np.zeros(50, np.int64)}
    buffer = SequenceReplayBuffer.from_example(300, example, length=4, num_envs=2, alpha=0.6)
    problems, stop = [], threading.Event()

    def write():
        for t in range(6000):
            now, after = (np.full((2, 50), u) for u in (t, t + 1))
            buffer.add(
                now, now[:, 0].copy(), np.full(2, t, np.float32), after, [False] * 2, [t % 50 == 49] * 2, copy=now
            )
        stop.set()

    def read():
        while not stop.is_set():
            if buffer.num_windows:
                batch = buffer.sample(32)
                step = batch.actions
                if not (
                    (batch.observations == step[..., None]).all()
                    and (batch.extra["copy"] == step[..., None]).all()
                    and (batch.next_observations == step[..., None] + 1).all()
                    and (batch.rewards == step).all()
                    and (np.diff(step, axis=0) == 1).all()
                    and (step[0] == batch.indices // 2).all()
                ):
                    problems.append(batch)
                buffer.update_priorities(batch.indices, np.full(32, 0.5))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    write()
    for thread in threads:
        thread.join()
    assert not problems


def test_staged_windows_are_those_of_direct_sampling():
    (staged, _), (direct, _) = filled(alpha=0.6), filled(alpha=0.6)
    with Staging(staged, 8) as batches:
        for _ in range(20):
            same(next(batches), direct.sample(8))


def test_wrong_use_is_named():
    def make(capacity=20, **options):
        return SequenceReplayBuffer.from_example(capacity, EXAMPLE, **{"length": 4, **options})

    with pytest.raises(ValueError, match="length: expected an integer of at least 1, got 0"):
        make(length=0)
    with pytest.raises(ValueError, match="windows: got 'long', expected one of 'whole', 'padded', 'across'"):
        make(windows="long")
    with pytest.raises(ValueError, match=r"burn_in: got 4, expected 0 to length - 1 = 3"):
        make(burn_in=4)
    with pytest.raises(TypeError, match="burn_in: got float"):
        make(burn_in=1.0)
    with pytest.raises(
        ValueError, match="capacity: got 20, 3 rows for each of 6 environments, expected at least length"
    ):
        make(num_envs=6)
    with pytest.raises(TypeError, match="num_envs"):
        make(num_envs=None)
    with pytest.raises(ValueError, match="alpha: got -1"):
        make(alpha=-1)
    with pytest.raises(ValueError, match="sample: the buffer holds no whole window of 4 rows yet"):
        make().sample(1)
    buffer, plain = filled(windows="whole")
    starts = plain.starts()
    wrong = next(i for i in range(min(starts), buffer.added) if i not in starts)
    with pytest.raises(IndexError, match=f"indices: got {wrong}, where no whole window of 5 rows begins"):
        buffer.gather([starts[0], wrong])
    with pytest.raises(IndexError, match="indices: got 0"):
        buffer.gather([0])
    with pytest.raises(TypeError, match="indices: got dtype float64"):
        buffer.gather([1.0])
    with pytest.raises(ValueError, match="indices: got shape"):
        buffer.gather([starts])
    with pytest.raises(ValueError, match=r"beta: got 0\.5, but the buffer has no priorities"):
        buffer.sample(2, beta=0.5)
    with pytest.raises(ValueError, match="windows have no priorities"):
        buffer.update_priorities([starts[0]], [1.0])
    prioritized, plain = filled(windows="whole", alpha=0.5)
    with pytest.raises(ValueError, match=f"indices: got {wrong}, where no whole window"):
        prioritized.update_priorities([starts[0], wrong], [1.0, 2.0])
    with pytest.raises(ValueError, match="priorities: got 0"):
        prioritized.update_priorities([starts[0]], [0.0])
    with pytest.raises(IndexError, match="never added"):
        prioritized.update_priorities([prioritized.added], [1.0])


def test_an_out_that_does_not_fit_is_named_and_nothing_is_drawn():
    buffer, _ = filled(length=3)
    good = buffer.sample(4)
    expected = filled(length=3)[0]
    expected.sample(4)
    for change, error, message in [
        ({"rewards": np.zeros((3, 4))}, TypeError, "rewards: got dtype float64"),
        ({"rewards": np.zeros((4, 3), np.float32)}, ValueError, r"got shape \(4, 3\), expected \(3, 4, '...'\)"),
        ({"rewards": np.zeros((3, 8), np.float32)[:, ::2]}, ValueError, "C-contiguous"),
        ({"actions": np.zeros((3, 4, 2), np.int64)}, ValueError, "actions: got shape"),
        ({"mask": np.zeros((3, 4), np.int8)}, TypeError, "mask: got dtype int8"),
        ({"is_first": np.zeros((3, 5), np.bool_)}, ValueError, "is_first: got shape"),
        ({"indices": np.zeros(4, np.int32)}, TypeError, "indices: got dtype int32"),
        ({"truncated": np.zeros((3, 4), np.int8)}, TypeError, "truncated: got dtype int8"),
        ({"observations": None}, TypeError, "out: .*got NoneType"),
        ({"extra": {}}, ValueError, "extra: got the fields"),
        ({"mask": good.is_first}, ValueError, "share memory"),
        ({"next_observations": good.observations}, ValueError, "shares memory with observations"),
    ]:
        with pytest.raises(error, match=message):
            buffer.sample(4, out=good._replace(**change))
    with pytest.raises(TypeError, match="out: got tuple, expected Sequences"):
        buffer.sample(4, out=tuple(good))
    same(buffer.sample(4), expected.sample(4))
