"""Small environments with one peculiarity each, registered at import: `make_envs("sample_envs:Walk-v0", ...)`.

Walk is known in closed form: from position x, action a leads to x + 1 or x - 1 and pays the new position; it terminates
at -3 or 3 and is cut after 6 steps. Observations are (x, steps since the start).
"""

import time
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

LIMIT, EDGE = 6, 3
SPACE = Box(-10.0, 10.0, (2,), np.float32)


class Walk(gymnasium.Env[Any, Any]):
    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = SPACE
    action_space = Discrete(2)

    def __init__(self) -> None:
        self.observation = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation = np.array([self.start(), 0], np.float32)
        return self.observation, {}

    def start(self) -> int:
        return int(self.np_random.integers(-1, 2))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.observation = self.observation + np.array([2 * int(action) - 1, 1], np.float32)
        x = float(self.observation[0])
        return self.observation, x, abs(x) >= EDGE, False, {"x": x}


class OneArray(Walk):
    """Writes every observation into the same array."""

    def __init__(self) -> None:
        super().__init__()
        self.array = np.zeros(2, np.float32)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.array[:], info = super().reset(**kwargs)
        return self.array, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.array[:], *rest = super().step(action)
        return self.array, *rest  # type: ignore[return-value]


class OwnGenerator(Walk):
    """Draws its starts from a generator that nobody seeds."""

    generator = np.random.default_rng()

    def start(self) -> int:
        return int(self.generator.integers(-(10**6), 10**6)) % 1000


class Counting(Walk):
    """Starts depend on how many episodes there were."""

    episodes = 0

    def start(self) -> int:
        self.episodes += 1
        return self.episodes


class LevelOfSeed(Walk):
    """A seeded reset draws a level that later resets keep."""

    level = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.level = int(np.random.default_rng(seed).integers(-1, 2))
        return super().reset(seed=seed, options=options)

    def start(self) -> int:
        return self.level + super().start() * 0


class Continuous(Walk):
    """Actions are a Box; it wanders by what it is given and notes whether steps draw from the generator."""

    action_space = Box(-1.0, 1.0, (1,), np.float32)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = float(np.asarray(action)[0]) + 0.1 * self.np_random.standard_normal()
        self.observation = self.observation + np.array([move, 1], np.float32)
        x = float(self.observation[0])
        return self.observation, x, abs(x) >= EDGE, False, {}


class Threads(Walk):
    """Observes how many cores a matrix product of NumPy, and one of torch, keeps busy."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        import torch

        busy = []
        for square in (np.ones((600, 600)), torch.ones(600, 600)):
            own, all_threads = time.thread_time(), time.process_time()
            for _ in range(4):
                square @ square
            busy.append((time.process_time() - all_threads) / (time.thread_time() - own))
        return np.array(busy, np.float32), 0.0, False, False, {}


class Pixels(gymnasium.Env[Any, Any]):
    """An image with a bright half: action 1 pays 1 where it is the right one, action 0 where it is the left one.

    Four steps, each with a half of its own; channels stand last.
    """

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = Box(0, 255, (36, 40, 2), np.uint8)
    action_space = Discrete(2)

    def seen(self) -> Any:
        self.right = int(self.np_random.integers(2))
        image = np.zeros((36, 40, 2), np.uint8)
        image[:, 20 * self.right : 20 * self.right + 20] = 200
        return image

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(int(action) == self.right)
        self.steps += 1
        return self.seen(), reward, self.steps == 4, False, {}


class Speck(Pixels):
    observation_space = Box(0, 255, (35, 84), np.uint8)


class WrongShape(Walk):
    observation_space = Box(-10.0, 10.0, (3,), np.float32)


class Grid(Walk):
    observation_space = Box(-10.0, 10.0, (2, 2), np.float32)


class Empty(Walk):
    observation_space = Box(-10.0, 10.0, (0,), np.float32)


class Several(Walk):
    action_space = MultiDiscrete([2, 2])  # type: ignore[assignment]


class IntegerBox(Walk):
    action_space = Box(-1, 1, (1,), np.int64)  # type: ignore[assignment]


class Misfit(Walk):
    """From its second step on, rewards or observations are not what they should be."""

    def __init__(self, reward: Any = 1.0, size: int = 2) -> None:
        super().__init__()
        self.wrong, self.size, self.first = reward, size, True

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self.first:
            self.first = False
            return observation, reward, *rest
        return np.zeros(self.size, np.float32), self.wrong, *rest


class Breaks(Walk):
    def __init__(self) -> None:
        raise RuntimeError("no licence\nfound")


class VectorWalk(VectorEnv[Any, Any, Any]):
    """Walk in vector form, in either autoreset mode; `final_obs` is one array."""

    def __init__(self, num_envs: int = 1, max_episode_steps: int = LIMIT, mode: str = "SameStep") -> None:
        self.num_envs = num_envs
        self.limit = max_episode_steps
        self.metadata = {"autoreset_mode": AutoresetMode(mode)}
        self.single_observation_space, self.single_action_space = SPACE, Discrete(2)
        self.observation_space = batch_space(SPACE, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observations = np.zeros((num_envs, 2), np.float32)
        self.ended = np.zeros(num_envs, np.bool_)

    def _restart(self, which: Any) -> None:
        self.observations[which] = 0.0
        self.observations[which, 0] = self.np_random.integers(-1, 2, int(np.sum(which)))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._restart(np.ones(self.num_envs, np.bool_))
        self.ended[:] = False
        return self.observations, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.observations[:, 0] += 2 * actions - 1
        self.observations[:, 1] += 1
        rewards = self.observations[:, 0].copy()
        terminated = np.abs(rewards) >= EDGE
        truncated = self.observations[:, 1] >= self.limit
        infos = {}
        if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
            self._restart(self.ended)
            rewards[self.ended] = 99.0  # what a filler pays means nothing
            terminated[self.ended] = truncated[self.ended] = False
            self.ended = terminated | truncated
        else:
            ended = terminated | truncated
            if ended.any():
                infos = {"final_obs": self.observations.copy(), "_final_obs": ended}
                self._restart(ended)
        return self.observations, rewards, terminated, truncated, infos


class PoolWalk:
    """Walk as EnvPool would step it (its conventions, seen in 1.2.5); take it for the module `envpool`.

    The step after an end is a reset that ignores its action. At the limit `truncated` hides a termination.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    observation_space, action_space = SPACE, Discrete(2)

    def __init__(self, num_envs: int, seed: list[int], max_episode_steps: int, num_threads: int) -> None:
        self.limit = max_episode_steps
        self.generators = [np.random.default_rng(word) for word in seed]
        self.walk = np.zeros((num_envs, 2), np.float32)
        self.done = np.zeros(num_envs, np.bool_)

    @staticmethod
    def list_all_envs() -> list[str]:
        return ["Walk-v0"]

    @staticmethod
    def make_spec(env_id: str, max_episode_steps: int = LIMIT, **others: Any) -> Any:
        return SimpleNamespace(config=SimpleNamespace(max_episode_steps=max_episode_steps))

    @staticmethod
    def make_gymnasium(env_id: str, **kwargs: Any) -> "PoolWalk":
        return PoolWalk(**kwargs)

    def _restart(self, which: Any) -> None:
        for i in np.flatnonzero(which):
            self.walk[i] = self.generators[i].integers(-1, 2), 0
        self.done[which] = False

    def reset(self) -> tuple[Any, dict[str, Any]]:
        self._restart(np.ones_like(self.done))
        return self.walk.copy(), {}

    def send(self, actions: Any) -> None:
        self.actions = actions.copy()

    def recv(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        fillers = self.done.copy()
        self.walk += np.stack([2 * self.actions - 1, np.ones_like(self.actions)], 1)
        rewards = np.where(fillers, 0, self.walk[:, 0]).astype(np.float32)
        truncated = self.walk[:, 1] >= self.limit
        terminated = (np.abs(rewards) >= EDGE) & ~truncated
        self._restart(fillers)
        self.done = (terminated | truncated) & ~fillers
        return self.walk.copy(), rewards, terminated & ~fillers, truncated & ~fillers, {}


class VectorWalkWithSecrets(VectorWalk):
    """Keeps state where nobody can look."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.secret = (item for item in range(10))


def _register(name: str, entry_point: Any, **kwargs: Any) -> None:
    if f"{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{name}-v0", entry_point, disable_env_checker=True, max_episode_steps=LIMIT, **kwargs)


_register("Walk", Walk, vector_entry_point=VectorWalk)
_register("Secrets", Walk, vector_entry_point=VectorWalkWithSecrets)
_register("Nondeterministic", Walk, nondeterministic=True)
for _env in (
    OneArray,
    OwnGenerator,
    Pixels,
    Speck,
    Counting,
    LevelOfSeed,
    Continuous,
    Threads,
    WrongShape,
    Misfit,
    Empty,
    Grid,
    Several,
    IntegerBox,
    Breaks,
):
    _register(_env.__name__, _env)
