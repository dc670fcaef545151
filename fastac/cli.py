"""Commands that need the "train" extra: train, resume, eval, plot, compare, export, profile."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import gymnasium
import tyro

from fastac import checkpoint
from fastac._progress import Counter, compiling_is_said
from fastac.algorithms import ALGORITHMS, preset, resume
from fastac.compare import Compare, compare
from fastac.curves import find_runs, group, read_curve
from fastac.envs import EnvError
from fastac.evaluate import Evaluation, evaluate
from fastac.export import export
from fastac.plot import draw
from fastac.policy import CHECKPOINT, Policy
from fastac.policy import load as load_policy
from fastac.profile import profile, show
from fastac.run import Result, RunError, torch_device

INTERRUPTED = 130
CATALOGUE = (
    "Train an algorithm, then evaluate its policy. They are in the order of their ideas, each one file, "
    "fastac/algorithms/NAME.py. Options and presets: `fastac train NAME --help`."
)


RUN_OPTIONS: list[tuple[str, Any, Any]] = [
    ("run_dir", Annotated[Path | None, tyro.conf.arg(help="The run's folder: new, or empty.")], None),
]
PROFILE_OPTIONS: list[tuple[str, Any, Any]] = [
    ("seconds", Annotated[float, tyro.conf.arg(help="How long to measure.")], 20.0),
    ("json", Annotated[bool, tyro.conf.arg(help="Print JSON instead of a table.")], False),
]


@dataclasses.dataclass(frozen=True)
class Resume:
    """Go on with a run where it was saved, bit for bit as if it had not been stopped."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    total_timesteps: int | None = None
    """A new end; only for runs that anneal nothing."""
    eval_episodes: int = 100
    """Episodes to evaluate at the end; 0 for none."""


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluate a run's policy over fixed starts: episode k begins with `env.reset(seed=seed + k)`."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a checkpoint file."""
    episodes: int = 100
    """How many."""
    seed: int = 10_000
    """Of the first start."""
    device: str = "cpu"
    """Where the policy runs."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw learning curves: interquartile mean over seeds with its 95 % bootstrap interval, a panel an environment."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Runs' folders, or folders with runs in them."""
    out: Path = Path("learning_curves.png")
    """The figure; .png, .svg or .pdf. An older one is replaced."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's policy, its normalisation and its actions' bounds with it, as one file that needs torch alone."""

    run: tyro.conf.Positional[Path]
    """The run's folder, or a checkpoint file."""
    out: tyro.conf.Positional[Path]
    """The file; its name ends in .pt2."""
    overwrite: bool = False
    """Replace a file that is there."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit code."""
    command, rest = arguments[0], list(arguments[1:])
    commands = {
        "train": train,
        "resume": go_on,
        "eval": evaluate_run,
        "plot": plot_runs,
        "compare": compare_algorithms,
        "export": export_policy,
        "profile": profile_algorithm,
    }
    try:
        with compiling_is_said():
            return commands[command](rest)
    except (EnvError, RunError, checkpoint.CheckpointError) as error:
        # One line, whatever a library put into its message.
        sys.stderr.write(f"fastac {command}: {' '.join(str(error).split())}\n")
        return 2
    except MemoryError as error:
        sys.stderr.write(f"fastac {command}: not enough memory: {' '.join(str(error).split())}\n")
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return INTERRUPTED


def train(arguments: list[str]) -> int:
    """`fastac train ALGORITHM`: trains, then evaluates."""
    options = tyro.cli(
        train_options(arguments),
        prog="fastac train",
        args=arguments,
        description=CATALOGUE,
    )
    if options.eval_episodes < 0:
        raise RunError(f"eval_episodes: got {options.eval_episodes}, expected at least 0")
    module = importlib.import_module(f"fastac.algorithms.{options.algorithm}")
    run_dir = options.run_dir or default_run_dir(options.algorithm, options.config)
    result: Result = module.train(options.config, run_dir=run_dir, progress_bar=True)
    return report(result, options.config.env_id, options.eval_episodes)


def go_on(arguments: list[str]) -> int:
    """`fastac resume RUN`: goes on, then evaluates."""
    options = tyro.cli(Resume, prog="fastac resume", args=arguments)
    if options.eval_episodes < 0:
        raise RunError(f"eval_episodes: got {options.eval_episodes}, expected at least 0")
    result = resume(options.run, total_timesteps=options.total_timesteps, progress_bar=True)
    return report(result, env_id_of(options.run), options.eval_episodes)


def evaluate_run(arguments: list[str]) -> int:
    """`fastac eval RUN`."""
    options = tyro.cli(Eval, prog="fastac eval", args=arguments)
    if options.episodes < 1:
        raise RunError(f"episodes: got {options.episodes}, expected at least 1")
    if options.seed < 0:
        raise RunError(f"seed: got {options.seed}, expected at least 0")
    torch_device(options.device)
    env_id = env_id_of(options.run)
    show_evaluation(load_policy(options.run, options.device), env_id, options.episodes, options.seed)
    return 0


def plot_runs(arguments: list[str]) -> int:
    """`fastac plot RUN...`."""
    options = tyro.cli(Plot, prog="fastac plot", args=arguments)
    if not options.runs:
        raise RunError("runs: got none, expected folders of runs")
    groups = group([read_curve(run) for run in find_runs(options.runs)])
    draw(options.out, groups)
    for one in groups:
        _, mean, low, high = one.band()
        sys.stdout.write(
            f"{one.env_id}, {one.label}, {len(one.curves)} seeds: interquartile mean return {mean[-1]:.1f}, "
            f"95 % interval [{low[-1]:.1f}, {high[-1]:.1f}] in the last twentieth of the training\n"
        )
    sys.stdout.write(f"{options.out}\n")
    return 0


def compare_algorithms(arguments: list[str]) -> int:
    """`fastac compare --algorithms A B ... --env-id X --seeds 0 1 ...`."""
    options = tyro.cli(Compare, prog="fastac compare", args=arguments)
    return compare(options)


def export_policy(arguments: list[str]) -> int:
    """`fastac export RUN policy.pt2`."""
    options = tyro.cli(Export, prog="fastac export", args=arguments)
    policy, env_id = load_policy(options.run), env_id_of(options.run)
    export(policy, options.out, overwrite=options.overwrite, env_id=env_id)
    space, actions = policy.observation_space, policy.action_space
    sys.stdout.write(
        f"{options.out}: observations (B, {', '.join(map(str, space.shape))}) {space.dtype} of {env_id} "
        f"to actions (B{''.join(f', {n}' for n in actions.shape or ())}) {actions.dtype}\n"
        f"Run it with: torch.export.load({str(options.out)!r}).module()(observations)\n"
    )
    return 0


def profile_algorithm(arguments: list[str]) -> int:
    """`fastac profile ALGORITHM`: trains for a while and says where the time went."""
    options = tyro.cli(
        train_options(arguments, PROFILE_OPTIONS),
        prog="fastac profile",
        args=arguments,
        description="Train for a while, in a folder that is thrown away, and say where the time goes. Ctrl-C ends it.",
    )
    module = importlib.import_module(f"fastac.algorithms.{options.algorithm}")
    found = profile(module.train, options.config, seconds=options.seconds)
    if options.json:
        named = {"algorithm": options.algorithm, "config": dataclasses.asdict(options.config)}
        sys.stdout.write(json.dumps({**named, **found.as_dict()}, indent=2) + "\n")
    else:
        show(found, f"{options.algorithm}, {options.config.env_id}")
    return 0


def train_options(arguments: Sequence[str], further: Sequence[tuple[str, Any, Any]] | None = None) -> Any:
    """Returns the type of `fastac train`'s command line: one subcommand an algorithm, defaults from the preset.

    What the parser starts from is read off the arguments: the preset, and the environment, which it may depend on.

    Args:
        arguments: The command line after `fastac train`.
        further: Options of another command that trains, name, type and default, in place of training's own: the
            run's folder and its evaluation.
    """
    named, env_id = value_of("preset", arguments), value_of("env-id", arguments)
    commands: list[Any] = []
    # Of an algorithm that is named, alone: the others' options are no help where one is misspelt.
    known = {name: ALGORITHMS[name] for name in arguments[:1] if name in ALGORITHMS} or ALGORITHMS
    for name, description in known.items():
        module = importlib.import_module(f"fastac.algorithms.{name}")
        presets: dict[str, Any] = module.PRESETS
        first = next(iter(presets))
        # Where no policy comes out, there is none to evaluate.
        eval_episodes: Any = Annotated[int, tyro.conf.arg(help="Episodes to evaluate at the end; 0: none.")]
        if not getattr(module, "TRAINS_A_POLICY", True):
            eval_episodes = tyro.conf.Suppress[int]
        options = dataclasses.make_dataclass(
            f"Train_{name}",
            [
                ("config", Annotated[module.Config, tyro.conf.OmitArgPrefixes]),
                (
                    "preset",
                    Annotated[
                        Literal[tuple(presets)],
                        tyro.conf.arg(help="Published hyperparameters to start from; other options change them."),
                    ],
                ),
                *([*RUN_OPTIONS, ("eval_episodes", eval_episodes, 100)] if further is None else further),
                ("algorithm", tyro.conf.Suppress[str], name),
            ],
            frozen=True,
        )
        chosen, environment = first, None
        if known is not ALGORITHMS:
            chosen, environment = (named if named in presets else first), env_id
        default = options(config=preset(name, chosen, environment), preset=chosen)
        commands.append(
            Annotated[options, tyro.conf.subcommand(name, default=default, description=description, prefix_name=False)]
        )
    # tyro makes no subcommand of a single choice.
    commands.append(Annotated[None, tyro.conf.Suppress])
    return Union[tuple(commands)]  # noqa: UP007


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Returns what a command line gives for `--option`, or None; dashes and underscores are the same.

    Example:
        >>> value_of("env-id", ["ppo", "--env_id=CartPole-v1"])
        'CartPole-v1'
    """
    found = None
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.replace("_", "-") == f"--{option}":
            found = value if equals else "".join(arguments[i + 1 : i + 2])
    return found or None


def default_run_dir(algorithm: str, config: Any) -> Path:
    """Returns `runs/<environment>__<algorithm>__<seed>__<seconds since 1970>`."""
    environment = re.sub(r"[^\w.-]+", "-", config.env_id)
    return Path("runs") / f"{environment}__{algorithm}__{config.seed}__{int(time.time())}"


def env_id_of(run: Path) -> str:
    """Returns the environment that a run was trained on."""
    path = run / CHECKPOINT if run.is_dir() else run
    config: Any = checkpoint.load(path).get("config", {})
    if not isinstance(config, dict) or "env_id" not in config:
        raise checkpoint.CheckpointError(f"{path}: no environment in this checkpoint")
    env_id: str = config["env_id"]
    return env_id


def report(result: Result, env_id: str, episodes: int) -> int:
    """Says how a run ended and, if all steps were done, what came out; returns the exit code."""
    if not result.finished:
        sys.stderr.write(f"Saved after {result.global_step:,} steps. Go on with: fastac resume {result.run_dir}\n")
        return 128 + signal.SIGINT if result.signal is not None else 0
    summary = result.summary()
    if summary is not None:
        sys.stdout.write(summary)
    elif episodes > 0:
        show_evaluation(result.policy, env_id, episodes)
    return 0


def show_evaluation(policy: Policy, env_id: str, episodes: int, seed: int = 10_000) -> Evaluation:
    """Evaluates and prints the mean, the deviation, the interval, and whether the environment counts as solved."""
    with Counter() as counter:
        evaluation = evaluate(
            policy, env_id, episodes=episodes, seed=seed, progress=lambda done, total: counter(done, total, "episodes")
        )
    low, high = evaluation.interval
    sys.stdout.write(
        f"{env_id}: mean return {evaluation.mean:.1f}, deviation {evaluation.std:.1f}, "
        f"95 % interval of the mean [{low:.1f}, {high:.1f}], {episodes} episodes from fixed starts\n"
    )
    # Its module, if it names one, has been imported by now.
    threshold = gymnasium.spec(env_id.rpartition(":")[2]).reward_threshold
    if threshold is not None:
        solved = "solved" if evaluation.mean >= threshold else "not solved"
        sys.stdout.write(f"{solved}: the environment asks for a mean of {threshold:g}\n")
    return evaluation
