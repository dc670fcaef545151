"""What no trainer can be faster than: PPO and A2C their environments alone, SAC its matrix products alone."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.training_cases import Case
from bench.training_peers import Pace, Train

BLOCK = 512


def environments(case: Case, seed: int, pace: Pace) -> None:
    """As many copies, stepped one after the other with random actions that were drawn before."""
    import gymnasium

    envs = [gymnasium.make(case.env_id) for _ in range(case.num_envs)]
    space = envs[0].action_space
    space.seed(seed)
    actions: list[Any] = [space.sample() for _ in range(BLOCK)]
    for number, env in enumerate(envs):
        env.reset(seed=seed + number)
    steps = [env.step for env in envs]
    done = 0
    while True:
        for action in actions:
            for env, step in zip(envs, steps, strict=True):
                _, _, terminated, truncated, _ = step(action)
                if terminated or truncated:
                    env.reset()
        done += BLOCK * len(envs)
        pace(done)


def vector_environment(case: Case, seed: int, pace: Pace) -> None:
    """The environment's own vector form, likewise; the steps in which it resets a copy count as well."""
    import gymnasium

    envs = gymnasium.make_vec(case.env_id, case.num_envs, vectorization_mode="vector_entry_point")
    envs.reset(seed=seed)
    envs.action_space.seed(seed)
    actions = [envs.action_space.sample() for _ in range(BLOCK)]
    done = 0
    while True:
        for action in actions:
            envs.step(action)
        done += BLOCK * case.num_envs
        pace(done)


def products(case: Case) -> list[tuple[int, int, int]]:
    """(m, k, n) of every matrix product of one update of SAC with two Q-functions: an m x k by a k x n matrix.

    Forward: the actor on next and on present observations, both target Q, both Q on the stored and on the policy's
    actions. Backward: weights of both Q and of the actor; inputs of every layer but the first, and of both Q's first,
    for the action.
    """
    import gymnasium

    env = gymnasium.make(case.env_id)
    observation, action = env.observation_space.shape, env.action_space.shape
    env.close()
    assert observation is not None
    assert action is not None
    batch, hidden = case.options["batch_size"], list(case.options["hidden_sizes"])
    actor = [observation[0], *hidden, 2 * action[0]]
    q = [observation[0] + action[0], *hidden, 1]
    found: list[tuple[int, int, int]] = []

    def forward(sizes: list[int], times: int) -> None:
        found.extend((batch, k, n) for k, n in itertools.pairwise(sizes) for _ in range(times))

    def weights(sizes: list[int], times: int) -> None:
        found.extend((n, batch, k) for k, n in itertools.pairwise(sizes) for _ in range(times))

    def inputs(sizes: list[int], times: int, *, first: bool) -> None:
        pairs = list(itertools.pairwise(sizes))
        found.extend((batch, n, k) for k, n in (pairs if first else pairs[1:]) for _ in range(times))

    forward(actor, 2)
    forward(q, 6)
    weights(q, 2)
    inputs(q, 2, first=False)
    weights(actor, 1)
    inputs(q, 2, first=True)
    inputs(actor, 1, first=False)
    return found


def matrix_products(case: Case, seed: int, pace: Pace) -> None:
    """Those of an update, by torch's BLAS, into memory that is used again."""
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    calls: list[Callable[[], Any]] = []
    with torch.no_grad():
        for m, k, n in products(case):
            left, right = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
            out = torch.empty(m, n)
            calls.append(lambda left=left, right=right, out=out: torch.mm(left, right, out=out))  # type: ignore[misc]
        done = 0
        while True:
            for _ in range(10):
                for call in calls:
                    call()
            done += 10
            pace(done)


def limits(case: Case) -> dict[str, Train]:
    """By name."""
    if case.algorithm == "sac":
        return {"limit": matrix_products}
    return {"limit": environments} | ({"limit_vector": vector_environment} if case.vectorized else {})


def floating_point_operations(case: Case) -> int:
    """Of the products of one update."""
    return int(sum(2 * np.prod(shape) for shape in products(case)))
