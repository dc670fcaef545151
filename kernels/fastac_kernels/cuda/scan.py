"""Backward recurrences of many sequences: one kernel for every memory layout, estimator and length.

What a row hands to the row before it is a state x, and what row t makes of the state behind it is linear:

    x[t] = a[t] + b[t] * x[t+1] + c[t] * V[t+1]        V: the value of the next row that is in time

so runs of rows are such maps, too, and maps compose. An episode's end cuts: a alone is left, by selection, so that NaN
behind it does no harm. A row that is not in time is the identity. Where next values are given row by row, V is not
needed, and the place of c is taken by what the row hands on when no row that is in time lies behind it.

A block takes a tile of sequences, and of each sequence some rows at a time, from its end: every thread has `ROWS`
consecutive ones in registers, composes them, finds the map of all rows behind its own by doubling in shared memory
(Hillis and Steele 1986), and goes through its rows once more, with the true state. Memory is read once. Where this
makes too few blocks - long sequences, and few of them - sequences are cut into chunks: a first launch leaves the map of
every chunk but the first, and the second starts each chunk from the maps behind it. Which operations happen in which
order depends on shapes alone: results are the same bits on every run, stream and device.

    Blelloch 1990, *Prefix Sums and Their Applications*, section 1.4: first-order recurrences as scans
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, types

from fastac_kernels.cuda import launch
from fastac_kernels.cuda.launch import FLOATS, Kernel, pointer, power_of_two
from fastac_kernels.operands import FULL, MASK, PACKED, RATIOS, SECOND, TERMINATED, TRUNCATED, VALUES

ROWS = 4  # of a thread: written out below
SLOTS = 5  # of a map: a, b, c, V, kind
THREADS = 256  # of a block, at most
TILE = 32  # sequences that are neighbours in memory: a warp reads whole lines
CHUNKS = 64  # of a sequence, at most
ENOUGH = 512  # blocks that keep a device busy
REMEMBERED = 4096  # plans of an estimator

# Of a row, and of a map: 0 is the identity.
VALID, CUT = 1, 2
ROW_TERMINATED, ROW_TRUNCATED = 2, 4
SCALARS = 6  # of a kernel: a recurrence that has fewer leaves the last ones 0


class Recurrence(NamedTuple):
    """An estimator as the kernel needs it: functions for the device, of one float type and form of next values.

    Attributes:
        start: (last value, scalars) -> x after the last row, where next values are short.
        row: (log ratio, reward, value, next value, terminated, truncated, scalars) -> a, b, c, whether it cuts.
        outputs: (those, x, V, whether a row in time lies behind) -> x, and the two outputs.
    """

    start: Callable[..., Any]
    row: Callable[..., Any]
    outputs: Callable[..., Any]


class Shape(NamedTuple):
    """How a call is laid out: sequences of a block, threads along each, blocks, and chunks of every sequence.

    Threads along a sequence and chunks are powers of two.
    """

    width: int
    depth: int
    tiles: int
    chunks: int


@lru_cache(maxsize=1024)
def shape_of(total: int, sequences: int, lanes: int) -> Shape:
    """Depends on sizes alone, so that results do; packed sequences are taken to have their mean length."""
    count = sequences * lanes
    rows = -(-total // count)
    if lanes > 1:
        width = min(TILE, power_of_two(lanes))
        depth = min(THREADS // width, power_of_two(-(-rows // ROWS)))
    else:
        depth = min(THREADS, power_of_two(-(-rows // ROWS)))
        width = min(max(THREADS // 2 // depth, 1), power_of_two(sequences))
    tiles = -(-count // width)
    chunks = max(min(CHUNKS, ENOUGH // tiles, rows // (4 * ROWS * depth)), 1)
    return Shape(width, depth, tiles, 1 << (chunks.bit_length() - 1))


def carries_size(total: int, sequences: int, lanes: int) -> int:
    """Elements of memory that `run` needs for the maps of chunks: mostly none."""
    chunks = shape_of(total, sequences, lanes).chunks if total > 0 else 1
    return 0 if chunks == 1 else SLOTS * chunks * sequences * lanes


@cache
def composition(full: bool) -> tuple[Any, Any]:
    """For the device: the map of two runs of rows, the earlier one's first; and a state before a run, from that behind.

    A map is a, b, c, V and its kind; a state x, V, and whether a row in time lies behind.
    """

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def compose(earlier: Any, later: Any) -> Any:
        a, b, c, value, kind = earlier
        if kind == 0:
            return later
        later_a, later_b, later_c, later_value, later_kind = later
        if later_kind == 0 or kind & CUT != 0:
            return earlier
        if full:
            return a + b * later_a, b * later_b, a + b * later_c, value, kind | later_kind
        return (a + c * later_value) + b * later_a, b * later_b, b * later_c, value, kind | later_kind

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def apply(run: Any, state: Any) -> Any:
        a, b, c, value, kind = run
        if kind == 0:
            return state
        x, next_value, behind = state
        if kind & CUT != 0:
            return a, value, 1
        if full:
            return (a + b * x if behind != 0 else c), value, 1
        return (a + c * next_value) + b * x, value, 1

    return compose, apply


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def four(array: Any, present: Any, at: Any, inside: Any, otherwise: Any) -> Any:
    """Four elements, asked for together: nothing here waits for any of them."""
    x0, x1, x2, x3 = otherwise, otherwise, otherwise, otherwise
    if present:
        i0, i1, i2, i3 = at
        in0, in1, in2, in3 = inside
        if in0:
            x0 = array[i0]
        if in1:
            x1 = array[i1]
        if in2:
            x2 = array[i2]
        if in3:
            x3 = array[i3]
    return x0, x1, x2, x3


@cuda.jit(device=True)  # type: ignore[untyped-decorator]
def flags_of(inside: Any, valid: Any, terminated: Any, truncated: Any) -> Any:
    """What a row is, in bits; 0 where it is not in time."""
    if not inside or valid == 0:
        return 0
    flags = VALID
    if terminated != 0:
        flags |= ROW_TERMINATED
    if truncated != 0:
        flags |= ROW_TRUNCATED
    return flags


@cache
def row_functions(recurrence: Callable[..., Recurrence], real: Any, full: bool) -> tuple[Any, Any, Any]:
    """For the device: the first x; the map of a row and all behind it; a row's outputs and the state before it."""
    start, row, outputs = recurrence(real, full)
    compose, _ = composition(full)
    zero = real(0)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def extend(loaded: Any, scalars: Any, later: Any) -> Any:
        log_ratio, reward, value, following, flags = loaded
        if flags == 0:
            return later
        a, b, c, cut = row(
            log_ratio, reward, value, following, flags & ROW_TERMINATED != 0, flags & ROW_TRUNCATED != 0, scalars
        )
        return compose((a, b, c, value, VALID | CUT if cut else VALID), later)

    @cuda.jit(device=True)  # type: ignore[untyped-decorator]
    def write(inside: Any, i: Any, loaded: Any, scalars: Any, state: Any, present: Any, first: Any, second: Any) -> Any:
        if not inside:
            return state
        log_ratio, reward, value, following, flags = loaded
        x, next_value, behind = state
        one_output, other_output = zero, zero
        if flags != 0:
            x, one_output, other_output = outputs(
                log_ratio, reward, value, following, flags & ROW_TERMINATED != 0, flags & ROW_TRUNCATED != 0, scalars,
                x, next_value, behind != 0,
            )  # fmt: skip
            next_value, behind = value, 1
        first[i] = one_output
        if present & SECOND != 0:
            second[i] = other_output
        return x, next_value, behind

    return start, extend, write


@cache
def scan_kernel(name: str, recurrence: Callable[..., Recurrence], real: Any, full: bool, reduce: bool) -> Kernel:
    """The kernel of one estimator, float type and form of next values.

    Args:
        name: Of the estimator.
        recurrence: Gives its `Recurrence` for a float type and a form.
        real: `np.float32` or `np.float64`.
        full: Next values are given for every row.
        reduce: The first of two launches: writes the maps of chunks, and no outputs.
    """
    start, extend, write = row_functions(recurrence, real, full)
    compose, apply = composition(full)
    zero, one, no, yes = real(0), real(1), np.uint8(0), np.uint8(1)
    slots, threads, shared_size = SLOTS, THREADS, 2 * SLOTS * THREADS

    def kernel(
        log_ratios: Any, rewards: Any, values: Any, next_values: Any, last_values: Any, terminated: Any, truncated: Any,
        mask: Any, cu_seqlens: Any, first: Any, second: Any, carries: Any,
        rows: Any, sequences: Any, lanes: Any, chunk_bits: Any, span_bits: Any, present: Any,
        s0: Any, s1: Any, s2: Any, s3: Any, s4: Any, s5: Any,
    ) -> None:  # fmt: skip
        scalars = (s0, s1, s2, s3, s4, s5)
        shared = cuda.shared.array(shared_size, real)
        count = sequences * lanes
        # Neighbours in memory are neighbours among threads: sequences where lanes alternate, else rows.
        if lanes > 1:
            lane, at, width, depth, pace = (
                cuda.threadIdx.x, cuda.threadIdx.y, cuda.blockDim.x, cuda.blockDim.y, cuda.blockDim.x
            )  # fmt: skip
        else:
            lane, at, width, depth, pace = (
                cuda.threadIdx.y, cuda.threadIdx.x, cuda.blockDim.y, cuda.blockDim.x, 1
            )  # fmt: skip
        slot = cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        head = slot - at * pace  # the slot of this sequence's first thread
        sequence = cuda.blockIdx.x * width + lane
        chunk = cuda.blockIdx.y + (1 if reduce else 0)
        chunks, span = 1 << chunk_bits, 1 << span_bits
        here = sequence < count

        # Where the sequence begins and how long it is; how often all threads of the block go round.
        length, begin, longest = 0, 0, 0
        if present & PACKED != 0:
            if here:
                begin = cu_seqlens[sequence]
                length = cu_seqlens[sequence + 1] - begin
            for other in range(cuda.blockIdx.x * width, min(cuda.blockIdx.x * width + width, count)):
                longest = max(longest, cu_seqlens[other + 1] - cu_seqlens[other])
        else:
            longest = rows
            if here:
                length = rows
                begin = sequence if lanes > 1 else sequence * rows
                if sequences > 1 and lanes > 1:
                    begin = (sequence // lanes) * rows * lanes + sequence % lanes
        # Shifts, where divisions of 64 bits would take as long as a round of the loop.
        part = ((((length + chunks - 1) >> chunk_bits) + span - 1) >> span_bits) << span_bits
        low = min(chunk * part, length)
        high = min(low + part, length)
        rounds = (((longest + chunks - 1) >> chunk_bits) + span - 1) >> span_bits

        # The state behind the last row; behind this chunk.
        identity = (zero, one, zero, zero, 0)
        x, next_value, behind = zero, zero, 0
        gathered = identity
        if not reduce and here:
            if not full:
                next_value = last_values[sequence]
                x = start(next_value, scalars)
            for other in range(chunks - 1, chunk, -1):
                place = other * count + sequence
                pitch = chunks * count
                run = (
                    carries[place], carries[place + pitch], carries[place + 2 * pitch], carries[place + 3 * pitch],
                    int(carries[place + 4 * pitch]),
                )  # fmt: skip
                x, next_value, behind = apply(run, (x, next_value, behind))

        half = 0
        for turn in range(rounds - 1, -1, -1):
            t = low + turn * span + at * ROWS
            i0 = begin + t * lanes
            i1, i2, i3 = i0 + lanes, i0 + 2 * lanes, i0 + 3 * lanes
            in0, in1, in2, in3 = t < high, t + 1 < high, t + 2 < high, t + 3 < high
            index, inside = (i0, i1, i2, i3), (in0, in1, in2, in3)
            r0, r1, r2, r3 = four(rewards, True, index, inside, zero)
            v0, v1, v2, v3 = four(values, present & VALUES != 0, index, inside, zero)
            q0, q1, q2, q3 = four(next_values, full, index, inside, zero)
            l0, l1, l2, l3 = four(log_ratios, present & RATIOS != 0, index, inside, zero)
            e0, e1, e2, e3 = four(terminated, present & TERMINATED != 0, index, inside, no)
            c0, c1, c2, c3 = four(truncated, present & TRUNCATED != 0, index, inside, no)
            m0, m1, m2, m3 = four(mask, present & MASK != 0, index, inside, yes)
            row0 = (l0, r0, v0, q0, flags_of(in0, m0, e0, c0))
            row1 = (l1, r1, v1, q1, flags_of(in1, m1, e1, c1))
            row2 = (l2, r2, v2, q2, flags_of(in2, m2, e2, c2))
            row3 = (l3, r3, v3, q3, flags_of(in3, m3, e3, c3))
            own = extend(row3, scalars, identity)
            own = extend(row2, scalars, own)
            own = extend(row1, scalars, own)
            own = extend(row0, scalars, own)

            # Doubling: the map of this thread's rows and of all behind them, up to the end of the span.
            distance = 1
            while True:
                base = half * slots * threads + slot
                a, b, c, value, kind = own
                shared[base] = a
                shared[base + threads] = b
                shared[base + 2 * threads] = c
                shared[base + 3 * threads] = value
                shared[base + 4 * threads] = real(kind)
                cuda.syncthreads()
                if distance >= depth:
                    break
                if at + distance < depth:
                    base += distance * pace
                    own = compose(own, (
                        shared[base], shared[base + threads], shared[base + 2 * threads], shared[base + 3 * threads],
                        int(shared[base + 4 * threads]),
                    ))  # fmt: skip
                distance *= 2
                half = 1 - half
            base = half * slots * threads + head
            whole = (
                shared[base], shared[base + threads], shared[base + 2 * threads], shared[base + 3 * threads],
                int(shared[base + 4 * threads]),
            )  # fmt: skip
            if reduce:
                gathered = compose(whole, gathered)
            else:
                state = (x, next_value, behind)
                if at + 1 < depth:
                    base = half * slots * threads + slot + pace
                    state = apply((
                        shared[base], shared[base + threads], shared[base + 2 * threads], shared[base + 3 * threads],
                        int(shared[base + 4 * threads]),
                    ), state)  # fmt: skip
                state = write(in3, i3, row3, scalars, state, present, first, second)
                state = write(in2, i2, row2, scalars, state, present, first, second)
                state = write(in1, i1, row1, scalars, state, present, first, second)
                state = write(in0, i0, row0, scalars, state, present, first, second)
                x, next_value, behind = apply(whole, (x, next_value, behind))
            half = 1 - half
        if reduce and here and at == 0:
            a, b, c, value, kind = gathered
            place = chunk * count + sequence
            pitch = chunks * count
            carries[place] = a
            carries[place + pitch] = b
            carries[place + 2 * pitch] = c
            carries[place + 3 * pitch] = value
            carries[place + 4 * pitch] = real(kind)

    element = FLOATS[np.dtype(real)]
    floats, flags = pointer(element), pointer(types.uint8)
    kinds = (
        *(floats,) * 5, *(flags,) * 3, pointer(types.int64), *(floats,) * 3, *(types.int64,) * 6, *(element,) * SCALARS
    )  # fmt: skip
    form = "full" if full else "short"
    return Kernel(f"{name} {form} {element}{' chunks' if reduce else ''}", kernel, kinds)


class Plan(NamedTuple):
    """How a call is launched: everything about it but addresses. An estimator remembers its plans.

    Attributes:
        carries: Elements of memory to work in, mostly 0.
        launch: Takes the addresses - log ratios, rewards, values, next values, last values, terminated, truncated,
            mask, cu_seqlens, the outputs, carries; 0 where there is none - then a stream and a device.
    """

    carries: int
    launch: Callable[[Sequence[int], int, int], None]


def planned(
    name: str, recurrence: Callable[..., Recurrence], real: Any, present: int, total: int, sequences: int, lanes: int,
    scalars: tuple[float, ...],
) -> Plan:  # fmt: skip
    """The plan of a scan.

    Args:
        name: Of the kernel, for people.
        recurrence: The estimator.
        real: Float type, NumPy's.
        present: Which addresses there are.
        total: Elements in all, at least one.
        sequences: As on the CPU.
        lanes: As on the CPU.
        scalars: Those of the recurrence.
    """
    width, depth, tiles, chunks = shape_of(total, sequences, lanes)
    full, block = present & FULL != 0, (width, depth) if lanes > 1 else (depth, width)
    launches = [(scan_kernel(name, recurrence, real, full, False), (tiles, chunks), block)]
    if chunks > 1:
        launches.insert(0, (scan_kernel(name, recurrence, real, full, True), (tiles, chunks - 1), block))
    rows = 0 if present & PACKED else total // (sequences * lanes)
    numbers = (
        rows, sequences, lanes, chunks.bit_length() - 1, (ROWS * depth).bit_length() - 1, present, *scalars,
        *(0.0,) * (SCALARS - len(scalars)),
    )  # fmt: skip

    def launch_all(addresses: Sequence[int], stream: int, device: int) -> None:
        arguments = (*addresses, *numbers)
        for kernel, grid, block in launches:
            launch.driver(kernel, grid, block, stream, device, arguments)

    return Plan(carries_size(total, sequences, lanes), launch_all)


def run(
    plan: Callable[..., Plan], log_ratios: int, rewards: int, values: int, next_values: int,
    last_values: int, terminated: int, truncated: int, mask: int, cu_seqlens: int, first: int, second: int,
    total: int, sequences: int, lanes: int, scalars: tuple[Any, ...], like: Any, carries: int,
    stream: int, device: int,
) -> None:  # fmt: skip
    """Launch an estimator over contiguous memory on the device; see `fastac_kernels.cuda` for the arguments."""
    if total == 0:
        return
    present = (
        (VALUES if values else 0) | (FULL if next_values else 0) | (TERMINATED if terminated else 0)
        | (TRUNCATED if truncated else 0) | (MASK if mask else 0) | (PACKED if cu_seqlens else 0)
    )  # fmt: skip
    addresses = (
        log_ratios, rewards, values, next_values, last_values, terminated, truncated, mask, cu_seqlens, first, second,
        carries,
    )  # fmt: skip
    plan(type(like), present, total, sequences, lanes, *scalars).launch(addresses, stream, device)
