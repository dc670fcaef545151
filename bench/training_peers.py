"""Who trains: fastac and the trainers that people use, each as its users start it, endlessly, at the pace it is given.

CleanRL's scripts are brought in by their user (`--cleanrl`, a checkout) and run as they are, by their own command line.
They were written for gymnasium 0.29; what the installed version wants differently is edited in their text when they
are run, listed in `CLEANRL_EDITS` and in the results.
"""

import dataclasses
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.ppo_settings import fastac_config, sb3_envs, sb3_model, sb3_options
from bench.training_cases import ENDLESS, Case, fastac_a2c, fastac_sac

Pace = Callable[[int], None]
"""Called with the number of environment steps so far; raises where nothing more is wanted."""
Train = Callable[[Case, int, Pace], object]


def fastac(case: Case, seed: int, pace: Pace, vectorization: str = "sync") -> object:
    import importlib

    name = {"a2c": "actor_critic"}.get(case.algorithm, case.algorithm)
    if case.setting is not None:
        config = dataclasses.replace(fastac_config(case.setting, seed), vectorization=vectorization)
    else:
        config = fastac_a2c(case, seed) if case.algorithm == "a2c" else fastac_sac(case, seed)
    return importlib.import_module(f"fastac.algorithms.{name}").train(config, lambda p: pace(p.global_step))


def fastac_vector(case: Case, seed: int, pace: Pace) -> object:
    """CartPole's own vector form, all copies in one call of NumPy."""
    return fastac(case, seed, pace, "vector_entry_point")


def sb3_callback(pace: Pace) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Paced(BaseCallback):
        """Between the end of a rollout and the end of the next lies one iteration."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            pace(self.num_timesteps)

    return Paced()


def sb3(case: Case, seed: int, pace: Pace) -> object:
    import torch

    torch.set_num_threads(1)
    if case.setting is not None:
        model = sb3_model(case.setting, seed)
    else:
        from stable_baselines3 import A2C, SAC

        kinds: dict[str, Any] = {"a2c": A2C, "sac": SAC}
        model = kinds[case.algorithm]("MlpPolicy", case.env_id, seed=seed, device="cpu")  # all options by default
    return model.learn(ENDLESS, callback=sb3_callback(pace))


def sbx(case: Case, seed: int, pace: Pace) -> object:
    import torch
    from sbx import PPO, SAC

    torch.set_num_threads(1)  # SB3's part of it
    setting = case.setting
    if setting is None:
        model: Any = SAC("MlpPolicy", case.env_id, seed=seed)
    else:
        from flax import linen

        model = PPO(
            "MlpPolicy",
            sb3_envs(setting, seed),
            **sb3_options(setting),
            policy_kwargs={
                "net_arch": list(setting.hidden_sizes),
                "activation_fn": linen.tanh,
                "ortho_init": True,
                "optimizer_kwargs": {"eps": setting.adam_eps},
            },
            seed=seed,
        )
    return model.learn(ENDLESS, callback=sb3_callback(pace))


SAME_STEP = "__import__('functools').partial(gym.vector.SyncVectorEnv, autoreset_mode='SameStep')("
CLEANRL_EDITS = {
    "gym.vector.SyncVectorEnv(": SAME_STEP,
    "lambda obs: np.clip(obs, -10, 10))": "lambda obs: np.clip(obs, -10, 10), env.observation_space)",
    'infos["final_observation"]': 'infos["final_obs"]',
    'in infos["final_info"]:': "in [{'episode': {'r': r, 'l': l}} for r, l, ended in zip(infos['final_info']['episode']"
    "['r'], infos['final_info']['episode']['l'], infos['_final_info']) if ended]:",
}
"""What gymnasium 1.x has under another name or wants said: text of the scripts, and what is run instead."""


def cleanrl_command(case: Case, seed: int) -> tuple[str, list[str]]:
    """The script of a case, and its command line."""
    flags: dict[str, Any] = {"env-id": case.env_id, "seed": seed, "total-timesteps": ENDLESS}
    if case.setting is None:
        names = ("num_envs", "buffer_size", "learning_starts", "batch_size", "policy_lr", "q_lr", "gamma", "tau")
        flags |= {name: case.options[name] for name in (*names, "policy_frequency")}
        script = "sac_continuous_action"
    else:
        names = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "learning_rate", "gamma", "gae_lambda")
        flags |= {name: getattr(case.setting, name) for name in (*names, "clip_coef", "ent_coef", "max_grad_norm")}
        flags["vf_coef"] = 2 * case.setting.value_mse_coef
        script = "ppo_continuous_action" if case.setting.normalize else "ppo"
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return script, [*arguments, "--no-cuda"]


def cleanrl(folder: Path) -> Train:
    """The scripts of a checkout; they say how far they are whenever they log their speed."""

    def train(case: Case, seed: int, pace: Pace) -> None:
        import torch
        from torch.utils.tensorboard import SummaryWriter

        class PacedWriter(SummaryWriter):
            def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *rest: Any) -> None:
                super().add_scalar(tag, scalar_value, global_step, *rest)
                if tag == "charts/SPS" and global_step is not None:
                    pace(global_step)

        torch.set_num_threads(1)
        torch.utils.tensorboard.SummaryWriter = PacedWriter  # type: ignore[misc]
        script, arguments = cleanrl_command(case, seed)
        path = folder / "cleanrl" / f"{script}.py"
        text = path.read_text(encoding="utf-8")
        for old, new in CLEANRL_EDITS.items():
            text = text.replace(old, new)
        sys.argv = [str(path), *arguments]
        sys.path.insert(0, str(folder))  # for cleanrl_utils
        module = types.ModuleType("__main__")
        module.__file__ = str(path)
        sys.modules["__main__"] = module  # dataclasses look their module up
        exec(compile(text, str(path), "exec"), vars(module))

    return train


def trainers(case: Case, checkout: Path | None) -> dict[str, Train]:
    """Everyone who has this algorithm, by name; CleanRL only with a checkout."""
    found: dict[str, Train] = {"fastac": fastac}
    if case.vectorized:
        found["fastac_vector"] = fastac_vector
    every: dict[str, Train] = {"sb3": sb3, "sbx": sbx}
    if checkout is not None:
        every["cleanrl"] = cleanrl(checkout)
    return found | {name: every[name] for name in case.peers if name in every}


def quiet(log: Path) -> None:
    """What a trainer prints goes to a file, and its files go beside it."""
    os.chdir(log.parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
