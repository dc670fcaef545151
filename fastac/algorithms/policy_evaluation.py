"""Policy evaluation: fit V of a fixed policy to four kinds of labels (Sutton and Barto 2018, chapters 6, 7 and 12).

A batch of episodes of the policy is given. Every gradient step, labels y are computed anew for each transition, from
the rewards r and from the values V that have been reached so far, and V(s_t) is drawn towards y_t:

    Monte Carlo   y_t = r_t + gamma r_{t+1} + ...             to the episode's end                 (eq. 3.8)
    TD(0)         y_t = r_t + gamma V(s_{t+1})                                                     (eq. 6.2)
    n-step        y_t = r_t + ... + gamma^{n-1} r_{t+n-1} + gamma^n V(s_{t+n})                     (eq. 7.1)
    lambda        y_t = (1 - lambda) sum_n lambda^{n-1} (n-step label)                             (eq. 12.2)

    L(phi) = 1/2 mean_t (V_phi(s_t) - y_t)^2,   no gradient through y

Labels from rewards alone are right on average and scatter; labels from V scatter less and are as wrong as V is. So as
long as V is on its way, the best n lies between 1 and the episode's length. At its end, the fit to Monte Carlo labels
has the smallest squared error on this batch; the fit to TD(0) labels is the value in the process that makes the batch
most likely (example 6.4), and is often the nearer one to the truth.

To tell bias from variance, the fit is repeated on many independent batches and compared with the true value.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastac import bias_variance
from fastac.episodes import Episodes, Trajectory
from fastac.prediction import Problem, make_problem
from fastac.returns import discounted_returns, lambda_returns, n_step_returns
from fastac.run import Callback, Result, Run, RunError, torch_device, torch_threads

TRAINS_A_POLICY = False
REPORT = "policy_evaluation"
OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of policy evaluation. The defaults are Sutton and Barto's random walk of five states."""

    env_id: str = "fastac/RandomWalk5-v0"
    """Gymnasium's id; `module:Id` imports the module first. Values are exact where it has a transition table."""
    policy: str = "random"
    """What is evaluated: random (every action as likely), or the folder of a run."""
    seed: int = 1
    """Of everything random: episodes, actions, weights, evaluated states."""
    gamma: float = 1.0
    """Discount per step: the probability of going on, where rewards are not discounted otherwise."""
    num_batches: int = 200
    """R, independent batches; the fit is repeated on each."""
    num_episodes: int = 10
    """Episodes in a batch."""
    max_episode_steps: int = 1000
    """Steps after which an episode is cut, where the environment does not cut it earlier."""
    n_steps: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 32)
    """Values of n, between TD(0) and Monte Carlo, which are always there."""
    td_lambdas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    """Values of lambda; 0 is TD(0), 1 Monte Carlo."""
    gradient_steps: tuple[int, ...] = (16, 32, 512)
    """Errors are taken after each of these numbers of gradient steps, each over the whole batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Plain gradient descent, for tables; Adam (Kingma and Ba 2015), for networks."""
    learning_rate: float = 1.0
    """Its step size."""
    hidden_sizes: tuple[int, ...] = (32, 32)
    """Widths of the network's hidden layers, with tanh between; not for tables."""
    num_eval_states: int = 50
    """Visited states whose value is measured, where it cannot be computed."""
    num_rollouts: int = 200
    """Rollouts from each of those states."""
    device: str = "cpu"
    """Where the critics live: cpu, cuda, cuda:1, ... All batches are fitted at once; no CUDA graph is captured."""
    torch_threads: int = 1
    """Threads of torch on the CPU."""

    @property
    def total_timesteps(self) -> int:
        """Gradient steps in all: what the progress bar counts to."""
        return len(targets(self)) * max(self.gradient_steps)

    def check(self) -> None:
        """Raises `RunError` naming the option that cannot be."""
        at_least_one = ("num_batches", "num_episodes", "max_episode_steps", "num_eval_states", "torch_threads")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise RunError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.num_rollouts < 2:
            raise RunError(f"num_rollouts: got {self.num_rollouts}, expected at least 2")
        if self.seed < 0:
            raise RunError(f"seed: got {self.seed}, expected at least 0")
        if not 0.0 <= self.gamma <= 1.0:
            raise RunError(f"gamma: got {self.gamma}, expected between 0 and 1")
        if not self.learning_rate > 0.0:
            raise RunError(f"learning_rate: got {self.learning_rate}, expected above 0")
        for n in self.n_steps:
            if n < 1:
                raise RunError(f"n_steps: got {n}, expected at least 1")
        for td_lambda in self.td_lambdas:
            if not 0.0 <= td_lambda <= 1.0:
                raise RunError(f"td_lambdas: got {td_lambda}, expected between 0 and 1")
        if not self.gradient_steps or list(self.gradient_steps) != sorted({*self.gradient_steps}):
            raise RunError(f"gradient_steps: got {self.gradient_steps}, expected increasing numbers")
        if self.gradient_steps[0] < 1:
            raise RunError(f"gradient_steps: got {self.gradient_steps[0]}, expected at least 1")


PRESETS = {
    "random-walk": Config(),
    "cartpole": Config(
        env_id="CartPole-v1",
        gamma=0.99,
        num_batches=40,
        n_steps=(2, 4, 8, 16, 32),
        td_lambdas=(0.5, 0.8, 0.9, 0.95),
        gradient_steps=(25, 50, 200),
        optimizer="adam",
        learning_rate=1e-2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of label: n-step, or lambda, or Monte Carlo where both are None."""

    name: str
    n: int | None = None
    td_lambda: float | None = None


def targets(config: Config) -> list[Target]:
    """Returns TD(0), the other n in their order, Monte Carlo, then the lambdas.

    Example:
        >>> [target.name for target in targets(Config(n_steps=(4, 2), td_lambdas=(0.9,)))]
        ['TD(0)', 'n = 2', 'n = 4', 'Monte Carlo', 'lambda = 0.9']
    """
    n_steps = [Target(f"n = {n}", n=n) for n in sorted({*config.n_steps}) if n > 1]
    td_lambdas = [Target(f"lambda = {x:g}", td_lambda=x) for x in sorted({*config.td_lambdas})]
    return [Target("TD(0)", n=1), *n_steps, Target("Monte Carlo"), *td_lambdas]


@torch.no_grad()
def labels(target: Target, critics: nn.Module, episodes: Episodes, gamma: float) -> Tensor:
    """Returns y of every transition, `(R, T)`, from the values that the critics have now.

    Where an episode was cut, every kind of label takes V of what came next for the future.
    """
    ends = (episodes.terminated, episodes.truncated, episodes.mask)
    rewards, next_values = episodes.rewards, critics(episodes.next_observations)
    if target.n is not None:
        return n_step_returns(rewards, None, next_values, *ends, n=target.n, gamma=gamma, batch_first=True)
    if target.td_lambda is not None:
        return lambda_returns(
            rewards, None, next_values, *ends, gamma=gamma, td_lambda=target.td_lambda, batch_first=True
        )
    return discounted_returns(rewards, next_values, *ends, gamma=gamma, batch_first=True)


def loss(critics: nn.Module, episodes: Episodes, y: Tensor) -> Tensor:
    """Returns 1/2 mean (V - y)^2 over each batch's transitions, summed over the batches, which share no parameter."""
    squares = torch.where(episodes.mask, critics(episodes.observations) - y, 0.0) ** 2
    return 0.5 * (squares.sum(1) / episodes.mask.sum(1)).sum()


def fit(target: Target, critics: nn.Module, episodes: Episodes, config: Config) -> Iterator[int]:
    """Fits the critics, each to its batch; yields the number of gradient steps after each of them."""
    optimizer = OPTIMIZERS[config.optimizer](critics.parameters(), lr=config.learning_rate)
    for step in range(1, max(config.gradient_steps) + 1):
        y = labels(target, critics, episodes, config.gamma)  # renewed: V has changed
        optimizer.zero_grad()
        loss(critics, episodes, y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step


class PolicyEvaluation:
    """The problem, its batches, and what the fits have found so far."""

    def __init__(self, config: Config):
        config.check()
        self.config = config
        self.device = torch_device(config.device)
        self.problem: Problem = make_problem(
            config.env_id,
            config.policy,
            gamma=config.gamma,
            seed=config.seed,
            max_episode_steps=config.max_episode_steps,
            num_eval_states=config.num_eval_states,
            num_rollouts=config.num_rollouts,
            hidden_sizes=config.hidden_sizes,
        )
        self.estimates: dict[str, dict[str, NDArray[np.float64]]] = {}
        self.episode_returns: list[float] = []
        self.episode_lengths: list[int] = []

    @property
    def global_step(self) -> int:
        """Gradient steps behind."""
        return len(self.estimates) * max(self.config.gradient_steps)

    def collect(self) -> None:
        """Plays the batches to fit on, and an episode from each evaluated state for each batch, to take labels of."""
        batches = self.problem.batches(self.config.num_batches, self.config.num_episodes)
        self.episode_returns = [float(episode.rewards.sum()) for batch in batches for episode in batch]
        self.episode_lengths = [len(episode.rewards) for batch in batches for episode in batch]
        self.batches = self.packed(batches)
        self.continuations = self.packed(self.problem.continuations(self.config.num_batches))

    def packed(self, batches: list[list[Trajectory]]) -> Episodes:
        """Returns the batches as the critics take them, on their device."""
        return Episodes(*[x.to(self.device) for x in self.problem.pack(batches)])

    def evaluate(self, target: Target, run: Run) -> bool:
        """Fits V to one kind of label on every batch; False where the run was stopped on the way."""
        config, problem = self.config, self.problem
        critics = problem.make_critics(config.num_batches).to(self.device)
        observations = problem.observations.to(self.device)
        states = observations.expand(config.num_batches, *observations.shape)
        found: dict[str, list[NDArray[np.float64]]] = {"fit": [], "labels": []}
        for step in fit(target, critics, self.batches, config):
            if run.stopped:
                return False
            if step in config.gradient_steps:
                fresh = labels(target, critics, self.continuations, config.gamma)
                found["labels"].append(fresh.gather(1, self.continuations.first_rows).cpu().numpy())
                found["fit"].append(critics(states).detach().cpu().numpy())
        if not all(np.isfinite(estimates).all() for estimates in found["fit"]):
            raise RunError(f"learning_rate: got {config.learning_rate}, with which the fit to {target.name} diverged")
        self.estimates[target.name] = {name: np.stack(estimates) for name, estimates in found.items()}
        return True

    def metrics(self, target: Target) -> dict[str, float]:
        """Returns the errors of a target after the last gradient step, for the log."""
        numbers = {"target/n": target.n, "target/td_lambda": target.td_lambda}
        row = {name: float("nan") if value is None else float(value) for name, value in numbers.items()}
        for what, estimates in self.estimates[target.name].items():
            found = bias_variance.errors(estimates[-1], self.problem.truth)
            row |= {f"{what}/{name}": value for name, value in found._asdict().items()}
        return row

    def report(self) -> dict[str, Any]:
        """Returns everything that the table and the figure show, as plain data rounded to 6 digits."""
        config, problem = self.config, self.problem
        shown = {"TD(0)", "Monte Carlo"}
        for name in ("n", "td_lambda"):  # and the middle one of each kind
            kind = [target.name for target in targets(config)[1:] if getattr(target, name) is not None]
            shown |= {*kind[len(kind) // 2 :][:1]}
        rows = []
        for target in targets(config):
            row: dict[str, Any] = dataclasses.asdict(target)
            for what, by_steps in self.estimates[target.name].items():
                row[what] = [bias_variance.errors(estimates, problem.truth)._asdict() for estimates in by_steps]
            if target.name in shown:
                final = self.estimates[target.name]["fit"][-1]
                row |= {"values": final.mean(0).tolist(), "values_std": final.std(0).tolist()}
            rows.append(row)
        whose = "the random policy" if config.policy == "random" else f"the policy of {config.policy}"
        title = f"V of {whose} in {config.env_id}: {config.num_batches} fits to {config.num_episodes} episodes each"
        report: dict[str, Any] = {
            "title": title,
            "config": dataclasses.asdict(config),
            "longest_episode": max(self.episode_lengths),
            "gradient_steps": list(config.gradient_steps),
            "truth": problem.truth.tolist(),
            "truth_se": problem.truth_se.tolist(),
            "targets": rows,
        }
        rounded: dict[str, Any] = bias_variance.rounded(report)
        return rounded

    def state_dict(self) -> dict[str, Any]:
        """Returns what has been found; everything else is made again from the seed."""
        return {
            "global_step": self.global_step,
            "truth": self.problem.truth,
            "truth_se": self.problem.truth_se,
            "estimates": self.estimates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`'s result."""
        self.problem.truth[:], self.problem.truth_se[:] = state["truth"], state["truth_se"]
        self.estimates = state["estimates"]


@dataclasses.dataclass(frozen=True)
class Evaluated(Result):
    """How a policy evaluation ended. `policy` is what was evaluated, None for the random policy."""

    report: dict[str, Any] | None
    """See `PolicyEvaluation.report`; None where the run was stopped."""

    def summary(self) -> str | None:
        """Returns the tables, and which n and lambda were best."""
        if self.report is None:
            return None
        fits = bias_variance.table(self.report, "fit", "V fitted to the target")
        fresh = bias_variance.table(self.report, "labels", "The target itself, of new transitions, with that V")
        return "\n".join([self.report["title"], fits, fresh, *bias_variance.verdict(self.report), ""])


def train(
    config: Config,
    callback: Callback | None = None,
    *,
    run_dir: str | Path | None = None,
    checkpoint: dict[str, Any] | None = None,
    progress_bar: bool = False,
) -> Evaluated:
    """Evaluates a fixed policy by every kind of label.

    A run folder gets, besides what every run writes, the report as `policy_evaluation.json`, `.png` and `.svg`.

    Args:
        config: What and how.
        callback: Called once a target with a `fastac.run.Progress`; returning False stops cleanly.
        run_dir: Where config, log, checkpoints and report go; new or empty. None: nothing is written.
        checkpoint: What `fastac.checkpoint.load` returned for `run_dir`, to go on from there.
        progress_bar: Show one on stderr.

    Returns:
        The report, and how the run ended.

    Raises:
        fastac.envs.EnvError: unknown environment, one that cannot be evaluated, or another environment's policy.
        fastac.checkpoint.CheckpointError: `policy` is no run.
        fastac.run.RunError: an option that cannot be, or a run folder that cannot be written or is not empty.

    Example:
        >>> result = train(Config(num_batches=10, n_steps=(2,), td_lambdas=(), gradient_steps=(8,)))
        >>> [target["name"] for target in result.report["targets"]]
        ['TD(0)', 'n = 2', 'Monte Carlo']
    """
    with torch_threads(config.torch_threads):
        evaluation = PolicyEvaluation(config)
        if checkpoint is not None:
            evaluation.load_state_dict(checkpoint)
        policy: Any = evaluation.problem.policy
        with Run(
            REPORT,
            config,
            policy,
            run_dir=run_dir,
            checkpoint=checkpoint,
            callback=callback,
            progress_bar=progress_bar,
        ) as run:
            for done in evaluation.problem.measure(lambda: run.stopped):
                if progress_bar and done % 10 == 0:
                    sys.stderr.write(f"true values: {done} of {config.num_eval_states} states measured\n")
            if not run.stopped:
                evaluation.collect()
            for target in targets(config):
                if run.stopped:
                    break
                if target.name not in evaluation.estimates and evaluation.evaluate(target, run):
                    episodes = (evaluation.episode_returns, evaluation.episode_lengths)
                    run.record(evaluation.global_step, evaluation.metrics(target), episodes, evaluation.state_dict)
            report = evaluation.report() if evaluation.global_step == config.total_timesteps else None
            if report is not None and run.run_dir is not None:
                write_report(report, run.run_dir)
            ending = run.finish(evaluation.global_step, evaluation.state_dict)
            return Evaluated(**vars(ending), report=report)


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes the report's data and its figure; the same report gives the same bytes."""
    path = folder / f"{REPORT}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    bias_variance.draw(report, path.with_suffix(".png"), path.with_suffix(".svg"))
