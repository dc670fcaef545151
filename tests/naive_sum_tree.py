"""A plain sum tree: every node's total is its sixteen children added up from the first to the last."""

import math

ARITY = 16


def levels(leaves: list[float]) -> list[list[float]]:
    """The leaves, the totals of every sixteen of them, and so on up to the one total of all."""
    result = [leaves]
    while len(result) == 1 or len(result[-1]) > 1:
        below = result[-1]
        totals = []
        for start in range(0, len(below), ARITY):
            total = 0.0
            for child in below[start : start + ARITY]:
                total = total + child
            totals.append(total)
        result.append(totals)
    return result


def find(tree: list[list[float]], x: float) -> int:
    """The leaf that x in [0, total) falls to, walking down from the root."""
    node = 0
    for level in reversed(tree[:-1]):
        children = level[node * ARITY : (node + 1) * ARITY]
        total = 0.0
        for child in children:
            total = total + child
        x = min(x, math.nextafter(total, 0.0))
        running, before, chosen = 0.0, 0.0, 0
        for j, child in enumerate(children):
            before, running = running, running + child
            if x < running:
                chosen = j
                break
        node, x = node * ARITY + chosen, x - before
    return node


def uniform(seed: int, counter: int) -> float:
    """Number `counter` of splitmix64's stream, on [0, 1)."""
    mask = 2**64 - 1
    z = (seed + (counter + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def draw(leaves: list[float], n: int, seed: int, counter: int) -> list[int]:
    """Stratified draws."""
    tree = levels(leaves)
    total = tree[-1][0]
    return [find(tree, (i + uniform(seed, counter + i)) * (total / n)) for i in range(n)]
