"""The replay buffers' generator against published outputs, and the byte moves that gathers are made of."""

import numpy as np
import pytest
from numba import njit

from fastac_kernels.pointers import copy, equal, high_word
from fastac_kernels.sampling import random_below, random_word


@njit
def words(seed, count):
    return [random_word(seed, i) for i in range(count)]


@njit
def below(seed, counter, bound):
    return random_below(seed, counter, bound)


@njit
def moved(target, source, size):
    copy(target, source, size)
    return equal(target, source, size)


@njit
def high(a, b):
    return high_word(a, b)


def test_splitmix64() -> None:
    """The first outputs for the seed 0, as in the generator's reference implementation."""
    assert [int(x) for x in words(0, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("bound", [1, 2, 3, 10**6, 2**62 + 1])
def test_below(bound: int) -> None:
    """floor(x n / 2^64), in exact integers."""
    for i, x in enumerate(words(7, 50)):
        assert below(7, i, bound) == (int(x) * bound) >> 64
        assert high(np.uint64(x), np.uint64(bound)) == (int(x) * bound) >> 64


@pytest.mark.parametrize("size", [*range(70), 95, 96, 97, 128, 191, 192, 193, 1000])
def test_copies_of_every_length(size: int) -> None:
    """Neither a byte less nor one more, at any alignment; one other byte anywhere is noticed."""
    rng = np.random.default_rng(size)
    for shift in (0, 1, 5):
        source, target = rng.integers(0, 256, (2, size + 16)).astype(np.uint8)
        wanted = target.copy()
        wanted[shift : shift + size] = source[3 : 3 + size]
        assert moved(target.ctypes.data + shift, source.ctypes.data + 3, size)
        np.testing.assert_array_equal(target, wanted)
        for place in range(0, size, max(1, size // 20)):
            other = target.copy()
            other[shift + place] ^= 1
            assert not same(other.ctypes.data + shift, source.ctypes.data + 3, size)


@njit
def same(a, b, size):
    return equal(a, b, size)
