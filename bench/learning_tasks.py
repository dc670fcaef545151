"""What is learnt beside SB3: PPO's settings on CartPole, and RL Baselines3 Zoo's A2C and SAC."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.ppo_settings import MAPPING, SETTINGS, Setting, fastac_config, sb3_model


@dataclass(frozen=True)
class Task:
    """One set of hyperparameters in both libraries: `fastac(seed, callback)` trains, `sb3(seed)` builds the model."""

    env_id: str
    steps: int
    hyperparameters: dict[str, Any]
    mapping: dict[str, str]
    fastac: Callable[[int, Callable[[Any], None]], Any]
    sb3: Callable[[int], Any]


def of_ppo(setting: Setting) -> Task:
    def train(seed: int, callback: Callable[[Any], None]) -> Any:
        from fastac.algorithms import ppo

        return ppo.train(fastac_config(setting, seed), callback)

    return Task(
        setting.env_id,
        setting.steps,
        dataclasses.asdict(setting),
        MAPPING,
        train,
        lambda seed: sb3_model(setting, seed),
    )


A2C = {"source": "RL Baselines3 Zoo, a2c.yml, CartPole-v1", "num_envs": 8, "total_timesteps": 500_000}
SAC = {"source": "RL Baselines3 Zoo, sac.yml, Pendulum-v1", "learning_rate": 1e-3, "total_timesteps": 20_000}
DEFAULTS = {"others": "Stable-Baselines3's defaults in both, as fastac's preset sb3-zoo has them"}


def fastac_zoo(algorithm: str, env_id: str) -> Callable[[int, Callable[[Any], None]], Any]:
    def train(seed: int, callback: Callable[[Any], None]) -> Any:
        import importlib

        from fastac.algorithms import preset

        config = dataclasses.replace(preset(algorithm, "sb3-zoo", env_id), seed=seed)
        return importlib.import_module(f"fastac.algorithms.{algorithm}").train(config, callback)

    return train


def sb3_a2c(seed: int) -> Any:
    import torch
    from stable_baselines3 import A2C as Model
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    envs = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    return Model("MlpPolicy", envs, ent_coef=0.0, seed=seed, device="cpu")


def sb3_sac(seed: int) -> Any:
    import torch
    from stable_baselines3 import SAC as Model

    torch.set_num_threads(1)
    return Model("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed, device="cpu")


TASKS = {name: of_ppo(setting) for name, setting in SETTINGS.items()} | {
    "a2c-zoo": Task("CartPole-v1", 500_000, A2C, DEFAULTS, fastac_zoo("actor_critic", "CartPole-v1"), sb3_a2c),
    "sac-zoo": Task("Pendulum-v1", 20_000, SAC, DEFAULTS, fastac_zoo("sac", "Pendulum-v1"), sb3_sac),
}
