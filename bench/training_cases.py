"""The trainings whose speed is compared, and what is equal in them; options have CleanRL's names."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from bench.ppo_settings import (
    CLEANRL_64,
    CLEANRL_64_LARGE,
    CLEANRL_64_SMALL,
    CLEANRL_MUJOCO,
    MAPPING,
    SETTINGS,
    Setting,
)

ENDLESS = 10**9
"""Environment steps that nobody reaches: a run is stopped when enough is measured, and nothing anneals visibly."""

SB3_A2C: dict[str, Any] = {
    "num_envs": 1,
    "num_steps": 5,
    "learning_rate": 7e-4,
    "gamma": 0.99,
    "gae_lambda": 1.0,
    "ent_coef": 0.0,
    "value_mse_coef": 0.5,
    "max_grad_norm": 0.5,
    "hidden_sizes": (64, 64),
}
SB3_SAC: dict[str, Any] = {
    "num_envs": 1,
    "buffer_size": 1_000_000,
    "learning_starts": 100,
    "batch_size": 256,
    "policy_lr": 3e-4,
    "q_lr": 3e-4,
    "gamma": 0.99,
    "tau": 0.005,
    "policy_frequency": 1,
    "autotune": True,
    "hidden_sizes": (256, 256),
}


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        name: As `--only` takes it.
        title: In the table.
        algorithm: ppo, a2c or sac.
        env_id: Gymnasium's.
        setting: PPO's, else None.
        options: The others', as SB3 has them by default.
        warm_steps: Environment steps before the first that counts: filling, compiling.
        vectorized: The environment has a vector form of its own that fastac can take as well.
        peers: Who takes part: those that have the algorithm.
    """

    name: str
    title: str
    algorithm: str
    env_id: str
    setting: Setting | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    warm_steps: int = 0
    vectorized: bool = False
    peers: tuple[str, ...] = ("sb3", "cleanrl", "sbx")

    @property
    def num_envs(self) -> int:
        return int(self.options["num_envs"]) if self.setting is None else self.setting.num_envs

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return self.options if self.setting is None else dataclasses.asdict(self.setting)


def ppo(name: str, title: str, setting: Setting, **options: Any) -> Case:
    endless = dataclasses.replace(setting, total_timesteps=ENDLESS)
    return Case(name, title, "ppo", setting.env_id, endless, **options)


CASES = (
    ppo("ppo-cartpole", "PPO, CartPole, 4 x 128", SETTINGS["cleanrl"]),
    ppo("ppo-cartpole-64", "PPO, CartPole, 64 x 128", CLEANRL_64, vectorized=True),
    ppo("ppo-cartpole-64-small", "PPO, CartPole, 64 x 128, minibatches of 64", CLEANRL_64_SMALL, vectorized=True),
    ppo(
        "ppo-cartpole-64-large",
        "PPO, CartPole, 64 x 128, minibatches of 2,048",
        CLEANRL_64_LARGE,
        vectorized=True,
        peers=("sb3",),
    ),
    ppo("ppo-halfcheetah", "PPO, HalfCheetah, 1 x 2048", CLEANRL_MUJOCO),
    Case("a2c-cartpole", "A2C, CartPole, 1 x 5", "a2c", "CartPole-v1", options=SB3_A2C, peers=("sb3",)),
    Case("sac-halfcheetah", "SAC, HalfCheetah", "sac", "HalfCheetah-v5", options=SB3_SAC, warm_steps=200),
    Case("sac-pendulum", "SAC, Pendulum", "sac", "Pendulum-v1", options=SB3_SAC, warm_steps=200),
)
BY_NAME = {case.name: case for case in CASES}

NOTES = {
    **MAPPING,
    "episodes": "each counts returns and lengths in its own way: SB3 and SBX by Monitor, CleanRL by"
    " RecordEpisodeStatistics, fastac in its environments",
    "normalisation": "HalfCheetah with PPO: running means of observations and returns, clipped to +-10, by"
    " VecNormalize (SB3, SBX), Gymnasium's wrappers (CleanRL), fastac's normalisers",
    "sbx": "its PPO has no clipping of the value function, and leaves that work out",
    "log": "nothing is logged to disk, but by CleanRL, whose scripts always write TensorBoard events",
    "sac": "Stable-Baselines3's defaults in all four; CleanRL --policy-frequency 1 --q-lr 3e-4 --learning-starts 100",
}
"""Where they cannot be made equal, and how each says the same."""


def fastac_a2c(case: Case, seed: int) -> Any:
    """Options of fastac for SB3's A2C: its value loss is a whole squared error, ours half of one."""
    from fastac.algorithms import actor_critic

    options = dict(case.options)
    vf_coef = 2.0 * options.pop("value_mse_coef")
    return actor_critic.Config(
        env_id=case.env_id, seed=seed, total_timesteps=ENDLESS, vf_coef=vf_coef, log_interval=10, **options
    )


def fastac_sac(case: Case, seed: int) -> Any:
    from fastac.algorithms import sac

    return sac.Config(env_id=case.env_id, seed=seed, total_timesteps=ENDLESS, log_interval=50, **case.options)
