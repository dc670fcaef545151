"""The sum tree: bit for bit the plain one, whatever the leaves; draws in proportion to them, and never of a zero."""

import copy
import pickle
from typing import Any

import naive_sum_tree
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastac.buffers.sum_tree import SumTree
from fastac_kernels._jit import kernel
from fastac_kernels.memory import array_at
from fastac_kernels.sum_tree import _inner_step, _leaf_step

ARITY = 16
CAPACITIES = st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 4095, 4096, 4097, 5000]))
# Of every magnitude, many zeros among them.
LEAF = st.one_of(st.just(0.0), st.floats(1e-290, 1e280), st.sampled_from([1.0, 0.1, 1e-290, 1e280, 5e-324, 2.0**-52]))


def levels(tree: SumTree) -> list[np.ndarray]:
    """The tree's values level by level, leaves first; the running sums of inner nodes are compared on the way."""
    rows = tree._header[2:].reshape(-1, 3)
    result, size = [], tree.capacity
    for level, (values, sums, _) in enumerate(rows):
        result.append(array_at(values, size, 0.0))
        if level == len(rows) - 1:
            break
        nodes = -(-size // ARITY)
        children = array_at(values, nodes * ARITY, 0.0).reshape(nodes, ARITY)
        assert not children.reshape(-1)[size:].any()
        if level:
            running = np.zeros(nodes)
            for j in range(ARITY):
                running = running + children[:, j]
                np.testing.assert_array_equal(array_at(sums, nodes * ARITY, 0.0).reshape(nodes, ARITY)[:, j], running)
        size = nodes
    return result


def check(tree: SumTree) -> None:
    """Every parent is the sum of its children, from the first to the last, bit for bit."""
    found, wanted = levels(tree), naive_sum_tree.levels(tree.leaves.tolist())
    assert len(found) == len(wanted)
    for mine, plain in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, plain)
    assert tree.total == wanted[-1][0]
    assert not tree._memory[2].any()  # no mark stays


@st.composite
def updates(draw: Any) -> tuple[int, list[tuple[list[int], list[float]]]]:
    capacity = draw(CAPACITIES)
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        leaves = draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=60))
        batches.append((leaves, draw(st.lists(LEAF, min_size=len(leaves), max_size=len(leaves)))))
    return capacity, batches


@settings(max_examples=100, deadline=None)
@given(updates(), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_any_updates_and_draws_as_the_plain_tree(case: Any, batch_size: int, seed: int) -> None:
    capacity, batches = case
    tree, plain = SumTree(capacity), [0.0] * capacity
    for leaves, values in batches:
        tree.set(leaves, values)
        for leaf, value in zip(leaves, values, strict=True):
            plain[leaf] = value
        np.testing.assert_array_equal(tree.leaves, plain)
        check(tree)
    if tree.total == 0:
        with pytest.raises(ValueError, match="total is 0"):
            tree.draw(batch_size, seed=seed, counter=0)
        return
    found, values = tree.draw(batch_size, seed=seed, counter=5)
    assert found.tolist() == naive_sum_tree.draw(plain, batch_size, seed, 5)
    np.testing.assert_array_equal(values, tree.leaves[found])
    assert (values > 0).all()


@pytest.mark.parametrize("capacity", [1, 15, 16, 17, 256, 257, 5000, 70_000])
def test_changed_memory_is_recomputed_in_whole_and_in_part(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    tree = SumTree(capacity)
    tree.leaves[:] = rng.random(capacity)
    tree.recompute()
    check(tree)
    for _ in range(5):
        start, stop = np.sort(rng.integers(0, capacity + 1, 2))
        tree.leaves[start:stop] = rng.random(stop - start)
        tree.recompute(int(start), int(stop))
        check(tree)


def test_b7_nothing_drifts() -> None:
    """Row B7: parents changed by differences drift; recomputed ones are a fresh tree's after any number of updates."""
    rng = np.random.default_rng(0)
    tree = SumTree(3000)
    for _ in range(2000):
        leaves = rng.integers(0, 3000, 64)
        tree.set(leaves, 10.0 ** rng.uniform(-12, 12, 64))
    fresh = SumTree(3000)
    fresh.set(np.arange(3000), tree.leaves)
    for mine, other in zip(levels(tree), levels(fresh), strict=True):
        assert mine.tobytes() == other.tobytes()
    check(tree)


@kernel
def walk(tree: int, x: float) -> int:
    """One draw, from any x."""
    rows = array_at(tree, 100, 0)
    node = 0
    for level in range(rows[0] - 1, 0, -1):
        child, x = _inner_step(rows[2 + 3 * level + 1] + node * 128, x)
        node = node * 16 + child
    return node * 16 + _leaf_step(rows[2] + node * 128, x)


@pytest.mark.parametrize("capacity", [1, 16, 17, 300, 5000])
def test_b7_the_walk_never_ends_on_a_zero_leaf(capacity: int) -> None:
    """Row B7: nor out of range, for any x: boundaries between leaves and their neighbours, the total, and beyond."""
    rng = np.random.default_rng(capacity)
    for density in (1.0, 0.5, 0.05):
        tree = SumTree(capacity)
        leaves = 10.0 ** rng.uniform(-30, 5, capacity) * (rng.random(capacity) < density)
        leaves[rng.integers(capacity)] = 1e-3
        tree.set(np.arange(capacity), leaves)
        sums, plain = np.cumsum(leaves), naive_sum_tree.levels(leaves.tolist())
        inner = np.concatenate(levels(tree)[1:])
        edges = np.concatenate([sums, inner, rng.random(300) * tree.total, [0.0, tree.total, 2 * tree.total]])
        for x in np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, np.inf)]):
            leaf = walk(tree.address, x)
            assert 0 <= leaf < capacity
            assert leaves[leaf] > 0
            assert leaf == naive_sum_tree.find(plain, x)


def test_b7_one_leaf_among_zeros_is_every_draw() -> None:
    """Row B7: the smallest number there is, alone, in every place."""
    for capacity in (1, 16, 17, 300, 4097):
        for leaf in {0, capacity // 2, capacity - 1}:
            for value in (5e-324, 1e-300, 1.0, 1e300):
                tree = SumTree(capacity)
                tree.set([leaf], [value])
                found, values = tree.draw(33, seed=1, counter=0)
                assert (found == leaf).all()
                assert (values == value).all()


def test_tiny_and_huge_leaves_together() -> None:
    """Beside 1e300 a leaf of 1e-300 is never drawn but never lost: it is there when the huge one is gone."""
    tree = SumTree(40)
    tree.set(np.arange(40), np.full(40, 1e-300))
    tree.set([7], [1e300])
    assert (tree.draw(1000, seed=0, counter=0)[0] == 7).all()
    tree.set([7], [1e-300])
    assert np.unique(tree.draw(1000, seed=0, counter=0)[0]).size == 40
    assert tree.total == sum([sum([1e-300] * 16), sum([1e-300] * 16), sum([1e-300] * 8)])


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_draws_are_proportional(batch_size: int) -> None:
    """Chi-square over the leaves: independent draws (B = 1) follow it; stratified ones fall below it, never above."""
    rng = np.random.default_rng(3)
    capacity, total = 300, 120_000
    leaves = rng.exponential(size=capacity) ** 2 * (rng.random(capacity) < 0.8)
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), leaves)
    counts = np.zeros(capacity)
    for counter in range(0, total, batch_size):
        counts += np.bincount(tree.draw(batch_size, seed=11, counter=counter)[0], minlength=capacity)
    assert not counts[leaves == 0].any()
    expected = counts.sum() * leaves / leaves.sum()
    common = expected > 5
    rare, rest = counts[~common].sum(), expected[~common].sum()
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum() + (rare - rest) ** 2 / rest
    chance = stats.chi2(common.sum()).sf(statistic)
    assert chance > 1e-3
    if batch_size == 1:
        assert chance < 1 - 1e-3


def test_draw_i_falls_into_the_i_th_part() -> None:
    """Schaul et al. 2016, appendix B.2.1."""
    tree = SumTree(1000)
    tree.set(np.arange(1000), np.ones(1000))
    for counter in range(0, 5000, 100):
        leaves, _ = tree.draw(100, seed=2, counter=counter)
        np.testing.assert_array_equal(leaves // 10, np.arange(100))


def test_draws_depend_on_seed_and_counter_alone() -> None:
    tree = SumTree(1000)
    tree.set(np.arange(1000), np.arange(1000.0))
    first = tree.draw(64, seed=9, counter=128)[0]
    tree.draw(3, seed=4, counter=1)
    np.testing.assert_array_equal(tree.draw(64, seed=9, counter=128)[0], first)
    assert (tree.draw(64, seed=9, counter=192)[0] != first).any()
    assert (tree.draw(64, seed=10, counter=128)[0] != first).any()


def test_leaves_in_memory_that_is_given() -> None:
    memory = np.zeros(SumTree.leaf_memory(20))
    memory[:20] = 1.0
    tree = SumTree(20, memory)
    assert tree.total == 20.0
    tree.set([3], [5.0])
    assert memory[3] == 5.0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda tree: pickle.loads(pickle.dumps(tree))])
def test_a_copy_has_memory_of_its_own(duplicate: Any) -> None:
    tree = SumTree(300)
    tree.set(np.arange(300), np.arange(300.0))
    other = duplicate(tree)
    check(other)
    other.set([299], [0.0])
    assert tree.total == other.total + 299
    check(tree)


def test_errors() -> None:
    tree = SumTree(3)
    with pytest.raises(ValueError, match="capacity: got 0"):
        SumTree(0)
    with pytest.raises(ValueError, match="leaves: got float64"):
        SumTree(20, np.zeros(20))
    with pytest.raises(ValueError, match="leaves: got 0 to 3"):
        tree.set([0, 3], [1.0, 1.0])
    with pytest.raises(ValueError, match="values: got shape"):
        tree.set([0, 1], [1.0])
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="at least 0 and finite"):
            tree.set([0], [value])
    with pytest.raises(ValueError, match="start, stop"):
        tree.recompute(2, 4)
    tree.set([0], [1.0])
    with pytest.raises(ValueError, match="batch_size: got 0"):
        tree.draw(0, seed=0, counter=0)
    tree.set([0, 1], [1.7e308, 1.7e308])
    with pytest.raises(ValueError, match="total is inf"):
        tree.draw(1, seed=0, counter=0)
