"""Published PPO hyperparameters on CartPole-v1, and what each becomes in SB3 and in fastac.

Names are CleanRL's. `MAPPING` says, option by option, where the libraries cannot be made equal.
"""

import dataclasses
from typing import Any

ENV_ID = "CartPole-v1"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One published set of hyperparameters; `value_mse_coef` multiplies the mean squared error of the values."""

    source: str
    total_timesteps: int
    num_envs: int
    num_steps: int
    num_minibatches: int
    update_epochs: int
    learning_rate: float
    gamma: float
    gae_lambda: float
    clip_coef: float
    anneal_clip: bool
    clip_vloss: bool
    value_mse_coef: float
    ent_coef: float
    anneal_lr: bool = True
    adam_eps: float = 1e-5
    max_grad_norm: float = 0.5
    hidden_sizes: tuple[int, int] = (64, 64)
    env_id: str = ENV_ID
    normalize: bool = False

    @property
    def steps(self) -> int:
        """Whole rollouts only, so that both libraries make the same number of updates."""
        rollout = self.num_envs * self.num_steps
        return self.total_timesteps // rollout * rollout


SETTINGS = {
    "cleanrl": Setting(
        source="CleanRL ppo.py defaults",
        total_timesteps=500_000,
        num_envs=4,
        num_steps=128,
        num_minibatches=4,
        update_epochs=4,
        learning_rate=2.5e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_coef=0.2,
        anneal_clip=False,
        clip_vloss=True,
        value_mse_coef=0.25,
        ent_coef=0.01,
    ),
    "zoo": Setting(
        source="RL Baselines3 Zoo, ppo.yml, CartPole-v1",
        total_timesteps=100_000,
        num_envs=8,
        num_steps=32,
        num_minibatches=1,
        update_epochs=20,
        learning_rate=1e-3,
        gamma=0.98,
        gae_lambda=0.8,
        clip_coef=0.2,
        anneal_clip=True,
        clip_vloss=False,
        value_mse_coef=0.5,
        ent_coef=0.0,
    ),
}
# SB3's value clipping is not CleanRL's (MAPPING), so the same without any: neither library is held to its weaker form.
SETTINGS["cleanrl-unclipped"] = dataclasses.replace(
    SETTINGS["cleanrl"], source="CleanRL ppo.py defaults, --no-clip-vloss", clip_vloss=False
)

# For the trainers' speed only: more environments with minibatches as before, half (SB3's batch_size by default) or 16
# times as large; MuJoCo's.
CLEANRL_64 = dataclasses.replace(
    SETTINGS["cleanrl"], source="CleanRL ppo.py, --num-envs 64 --num-minibatches 64", num_envs=64, num_minibatches=64
)
CLEANRL_64_SMALL = dataclasses.replace(
    SETTINGS["cleanrl"], source="CleanRL ppo.py, --num-envs 64 --num-minibatches 128", num_envs=64, num_minibatches=128
)
CLEANRL_64_LARGE = dataclasses.replace(SETTINGS["cleanrl"], source="CleanRL ppo.py, --num-envs 64", num_envs=64)
CLEANRL_MUJOCO = Setting(
    source="CleanRL ppo_continuous_action.py defaults",
    total_timesteps=1_000_000,
    num_envs=1,
    num_steps=2048,
    num_minibatches=32,
    update_epochs=10,
    learning_rate=3e-4,
    gamma=0.99,
    gae_lambda=0.95,
    clip_coef=0.2,
    anneal_clip=False,
    clip_vloss=True,
    value_mse_coef=0.25,
    ent_coef=0.0,
    env_id="HalfCheetah-v5",
    normalize=True,
)

MAPPING = {
    "network": "separate tanh 64x64 actor and critic, orthogonal, gains sqrt 2, 0.01 (policy), 1 (value) in both",
    "vf_coef": "CleanRL and fastac weigh half the squared error, SB3 the whole: SB3 gets half the coefficient",
    "clip_vloss": "CleanRL takes the larger of clipped and unclipped; SB3's clip_range_vf has the clipped one alone",
    "anneal_lr": "linear to 0 in both; SB3 reads its schedule after the rollout, so it is one update ahead",
    "truncation": "both bootstrap from the final observation's value (CleanRL does not)",
    "steps": "the published total rounded down to whole rollouts",
}


def linear(initial: float) -> Any:
    """SB3's schedule: a function of the share of training that remains."""
    return lambda remaining: remaining * initial


def sb3_envs(setting: Setting, seed: int) -> Any:
    """SB3's environments, in one process, with its wrapper for normalisation where that is wanted."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    envs = make_vec_env(setting.env_id, n_envs=setting.num_envs, seed=seed)
    return VecNormalize(envs, gamma=setting.gamma) if setting.normalize else envs


def sb3_options(setting: Setting) -> dict[str, Any]:
    """What SB3's PPO and SBX's name alike."""
    return {
        "learning_rate": linear(setting.learning_rate) if setting.anneal_lr else setting.learning_rate,
        "n_steps": setting.num_steps,
        "batch_size": setting.num_envs * setting.num_steps // setting.num_minibatches,
        "n_epochs": setting.update_epochs,
        "gamma": setting.gamma,
        "gae_lambda": setting.gae_lambda,
        "clip_range": linear(setting.clip_coef) if setting.anneal_clip else setting.clip_coef,
        "ent_coef": setting.ent_coef,
        "vf_coef": setting.value_mse_coef,
        "max_grad_norm": setting.max_grad_norm,
    }


def sb3_model(setting: Setting, seed: int) -> Any:
    """SB3's PPO as its users build it: `make_vec_env`, `PPO("MlpPolicy", ...)`."""
    import torch
    from stable_baselines3 import PPO

    torch.set_num_threads(1)
    width = list(setting.hidden_sizes)
    return PPO(
        "MlpPolicy",
        sb3_envs(setting, seed),
        **sb3_options(setting),
        clip_range_vf=setting.clip_coef if setting.clip_vloss else None,
        normalize_advantage=True,
        policy_kwargs={
            "net_arch": {"pi": width, "vf": width},
            "activation_fn": torch.nn.Tanh,
            "ortho_init": True,
            "optimizer_kwargs": {"eps": setting.adam_eps},
        },
        seed=seed,
        device="cpu",
        verbose=0,
    )


def fastac_config(setting: Setting, seed: int) -> Any:
    """Options of fastac for the same training; `clip_coef` bounds the values' change, too, as in CleanRL."""
    from fastac.algorithms import ppo

    return ppo.Config(
        env_id=setting.env_id,
        seed=seed,
        total_timesteps=setting.steps,
        learning_rate=setting.learning_rate,
        num_envs=setting.num_envs,
        num_steps=setting.num_steps,
        anneal_lr=setting.anneal_lr,
        gamma=setting.gamma,
        gae_lambda=setting.gae_lambda,
        num_minibatches=setting.num_minibatches,
        update_epochs=setting.update_epochs,
        norm_adv=True,
        clip_coef=setting.clip_coef,
        anneal_clip=setting.anneal_clip,
        clip_vloss=setting.clip_vloss,
        ent_coef=setting.ent_coef,
        vf_coef=2 * setting.value_mse_coef,
        max_grad_norm=setting.max_grad_norm,
        normalize_observations=setting.normalize,
        normalize_rewards=setting.normalize,
        hidden_sizes=setting.hidden_sizes,
        activation="tanh",
        device="cpu",
        torch_threads=1,
    )
