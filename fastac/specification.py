"""An algorithm with its options in one word: `NAME[:PRESET][,OPTION=VALUE...]`, read and written."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
from collections.abc import Mapping
from typing import Any

import tyro

from fastac.algorithms import ALGORITHMS, preset
from fastac.run import RunError

__all__ = ["NOT_A_SETTING", "configure", "specify"]

NOT_IN_A_SPECIFICATION = ("env_id", "seed")
NOT_A_SETTING = (*NOT_IN_A_SPECIFICATION, "device", "torch_threads")


def configure(specification: str, env_id: str) -> tuple[str, Any]:
    """Returns an algorithm's name and its Config, from `NAME[:PRESET][,OPTION=VALUE...]`.

    Raises:
        RunError: there is no such algorithm, preset or option, or it trains no policy.

    Example:
        >>> name, config = configure("ppo:sb3-zoo,gamma=0.9,hidden_sizes=32 32", "CartPole-v1")
        >>> name, config.gamma, config.gae_lambda, config.hidden_sizes
        ('ppo', 0.9, 0.8, (32, 32))
    """
    head, *assignments = specification.split(",")
    name, _, chosen = head.partition(":")
    module = importlib.import_module(f"fastac.algorithms.{name}") if name in ALGORITHMS else None
    trainable = [known for known in ALGORITHMS if known != "policy_evaluation"]
    if module is None or not getattr(module, "TRAINS_A_POLICY", True):
        raise RunError(f"algorithms: got {specification!r}, expected one of {', '.join(trainable)}")
    config = preset(name, chosen or next(iter(module.PRESETS)), env_id)
    options = {field.name for field in dataclasses.fields(config)}
    with_values: Any = tyro.conf.FlagConversionOff  # flags take True or False here
    for assignment in assignments:
        option, equals, value = assignment.strip().partition("=")
        option = option.replace("-", "_")
        if not equals or option not in options or option in NOT_IN_A_SPECIFICATION:
            raise RunError(f"algorithms: got {assignment!r} in {specification!r}, expected OPTION=VALUE of {name}")
        arguments = [f"--{option}", *value.split()]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it would print a box
                config = tyro.cli(with_values[module.Config], args=arguments, default=config, console_outputs=False)
        except SystemExit:
            raise RunError(
                f"algorithms: got {assignment!r} in {specification!r}, a value that is not of the option's type"
            ) from None
    return name, config


def specify(algorithm: str, config: Mapping[str, Any]) -> str:
    """Returns `NAME:PRESET,OPTION=VALUE...` for options as `config.json` holds them: what `configure` reads.

    The preset is the one that fewest options differ from. The environment, the seed, where it ran and how long it went
    on are not said.

    Example:
        >>> name, config = configure("ppo:sb3-zoo,gamma=0.9,hidden_sizes=32 32", "CartPole-v1")
        >>> specify(name, dataclasses.asdict(config))
        'ppo:sb3-zoo,gamma=0.9,hidden_sizes=32 32'
    """
    if algorithm not in ALGORITHMS:
        return algorithm
    mine = json.loads(json.dumps(dict(config)))
    closest: tuple[str, list[str]] | None = None
    for name in importlib.import_module(f"fastac.algorithms.{algorithm}").PRESETS:
        try:
            published = dataclasses.asdict(preset(algorithm, name, config.get("env_id")))
        except RunError:
            continue
        theirs = json.loads(json.dumps(published))
        options = [option for option in mine if option not in (*NOT_A_SETTING, "total_timesteps")]
        differing = [option for option in options if mine[option] != theirs.get(option)]
        if closest is None or len(differing) < len(closest[1]):
            closest = (name, differing)
    if closest is None:
        return algorithm
    name, differing = closest
    values = {option: mine[option] for option in differing}
    words = {
        option: " ".join(map(str, value)) if isinstance(value, list) else value for option, value in values.items()
    }
    return ",".join([f"{algorithm}:{name}", *(f"{option}={word}" for option, word in words.items())])
