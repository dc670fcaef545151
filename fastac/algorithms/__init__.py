"""The algorithms: one file each, read from top to bottom like its paper."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastac.run import Callback, Result

ALGORITHMS = {
    "policy_evaluation": "Fit V of a fixed policy to Monte Carlo, TD(0), n-step and lambda targets, and show the bias, "
    "variance and error of each. Sutton and Barto 2018, chapters 6, 7 and 12.",
    "reinforce": "The policy gradient from whole episodes: total return or reward-to-go, with or without a baseline. "
    "Williams 1992; Sutton et al. 2000.",
    "actor_critic": "The policy gradient with advantages from a fitted V, in batches or online (A2C). "
    "Sutton et al. 2000; Mnih et al. 2016, arXiv:1602.01783.",
    "importance_weighted": "Several gradient steps on one batch with importance weights, KL(new || old) penalised "
    "or bounded. Precup et al. 2000; Schulman et al. 2017, arXiv:1707.06347, section 4.",
    "trpo": "Trust region policy optimisation: the natural gradient's step to a bound on KL, and a line search. "
    "Schulman et al. 2015, arXiv:1502.05477.",
    "ppo": "Proximal policy optimisation: many gradient steps on one rollout, with the ratio clipped. "
    "Schulman et al. 2017, arXiv:1707.06347.",
    "off_policy": "Actor-critic from a replay buffer: the policy's own actions in the target of Q and in the gradient, "
    "and two broken versions without. Degris et al. 2012, arXiv:1205.4839; Heess et al. 2015, arXiv:1510.09142.",
    "sac": "Soft actor-critic: replay, two Q-functions, a policy as random as a learned temperature asks. "
    "Haarnoja et al. 2018, arXiv:1812.05905.",
    "td3": "Twin delayed deep deterministic policy gradient: replay, two Q-functions, smoothed targets. "
    "Fujimoto et al. 2018, arXiv:1802.09477.",
    "ddpg": "Deep deterministic policy gradient: replay, the gradient of Q through the action. "
    "Lillicrap et al. 2016, arXiv:1509.02971.",
}
"""Module name to description and paper."""
FOR_BOX_ACTIONS = ("sac", "td3", "ddpg")
"""Those that have no use for discrete actions."""


def preset(algorithm: str, name: str, env_id: str | None = None) -> Any:
    """Returns a Config of published hyperparameters.

    Args:
        algorithm: A key of `ALGORITHMS`.
        name: A key of its module's `PRESETS`. An entry is a Config for any environment, or one Config for each of
            several environments and, under "default", for the others.
        env_id: The environment; None: the one that the publication has, or has first.

    Raises:
        fastac.run.RunError: there is no such algorithm or preset, or none for this environment.

    Example:
        >>> preset("ppo", "sb3-zoo").gae_lambda, preset("ppo", "sb3-zoo", "Acrobot-v1").gae_lambda
        (0.8, 0.94)
    """
    from fastac.run import RunError

    if algorithm not in ALGORITHMS:
        raise RunError(f"algorithm: got {algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
    presets = importlib.import_module(f"fastac.algorithms.{algorithm}").PRESETS
    if name not in presets:
        raise RunError(f"preset: got {name!r}, expected one of {', '.join(presets)} for {algorithm}")
    entry = presets[name]
    if isinstance(entry, dict):
        first = next(iter(entry))
        known = first if env_id is None else env_id.rpartition(":")[2]
        if known not in entry and "default" not in entry:
            raise RunError(f"preset: {name} of {algorithm} has no setting for {env_id}, only for {', '.join(entry)}")
        entry = entry.get(known, entry.get("default"))
    return entry if env_id is None else dataclasses.replace(entry, env_id=env_id)


def resume(
    run: str | Path,
    callback: Callback | None = None,
    *,
    total_timesteps: int | None = None,
    progress_bar: bool = False,
) -> Result:
    """Goes on with a run from its checkpoint: bit for bit as if it had not been stopped.

    Where the environments' state cannot be restored, it says so and goes on with new episodes.

    Args:
        run: The run folder.
        callback: As for `train`.
        total_timesteps: A new end. Refused where something is annealed towards the old one: what is behind would then
            have been another run's.
        progress_bar: Show one.

    Raises:
        fastac.checkpoint.CheckpointError: missing, damaged, foreign or of a newer version.
        fastac.run.RunError: nothing is left to do, or `total_timesteps` contradicts annealing.
    """
    from fastac import checkpoint
    from fastac.policy import CHECKPOINT
    from fastac.run import RunError

    path = Path(run) / CHECKPOINT
    state = checkpoint.load(path)
    algorithm: Any = state.get("algorithm")
    if algorithm not in ALGORITHMS:
        raise checkpoint.CheckpointError(f"{path}: algorithm {algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
    module = importlib.import_module(f"fastac.algorithms.{algorithm}")
    try:
        config = config_from_dict(module.Config, state["config"])
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{path}: its options are another version's ({error})") from error
    if total_timesteps is not None and total_timesteps != config.total_timesteps:
        if "total_timesteps" not in state["config"]:
            raise RunError(f"total_timesteps: {algorithm} has no such option, and ends where it was going to")
        for name in ("anneal_lr", "anneal_clip"):
            if getattr(config, name, False):
                raise RunError(f"total_timesteps: got {total_timesteps}, expected {config.total_timesteps} with {name}")
        config = dataclasses.replace(config, total_timesteps=total_timesteps)
    if state["global_step"] >= config.total_timesteps:
        raise RunError(f"{run}: finished, all {config.total_timesteps:,} steps are done")
    result: Result = module.train(config, callback, run_dir=run, checkpoint=state, progress_bar=progress_bar)
    return result


def config_from_dict(kind: type[Any], values: dict[str, Any]) -> Any:
    """Builds a Config from what `dataclasses.asdict` made of it, lists being tuples again."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
