"""What becomes of off-policy actor-critic if the replay buffer is taken for a rollout of the policy.

Three versions of one algorithm: the correct one, one that learns V from the buffer's rewards, one that makes the
buffer's actions more probable. In a small walk along a cliff, where everything can be computed: the value that each
critic finds for a fixed policy, from buffers in which this policy acted more or less often; and the true return of the
policy that each version learns from one buffer of random actions. On CartPole: returns while learning.
One record a run; a run that is recorded already is skipped, so an interrupted command goes on where it stopped.

    python -m bench off_policy
    python -m bench off_policy --draw     # the figure alone, from what is recorded
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from bench import record

TITLES = {
    "correct": "correct",
    "actions-of-the-buffer": "actions of the buffer",
    "values-of-the-buffer": "values of the buffer",
}
COLOURS = {"correct": "#1a7f37", "actions-of-the-buffer": "#8250df", "values-of-the-buffer": "#cf222e"}
SEEDS = (0, 1, 2)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = {"env_id": "CartPole-v1", "total_timesteps": 20_000}
RESULTS = record.RESULTS / "off_policy.json"
FIGURE = record.ROOT / "docs" / "off_policy.svg"

GAMMA = 0.95
STATES, START = 5, 2
LEFT, RIGHT, DOWN = range(3)
CAREFUL = np.tile([0.05, 0.9, 0.05], (STATES, 1))
CLIFF: Any = {
    "env_id": "bench.off_policy:bench/Cliff-v0", "gamma": GAMMA, "hidden_sizes": (), "batch_size": 64,
    "buffer_size": 20_000, "tau": 0.05, "num_envs": 8, "ent_coef": 0.0, "normalize_observations": False,
}  # fmt: skip
CLIFF_STEPS = 1_500
FIT_UPDATES, LEARN_UPDATES, POINTS = 2_000, 4_000, 40


class Cliff(gymnasium.Env[Any, Any]):
    """Five states in a row. The left end pays 0.2, the right one 1. Whoever goes down in the last two falls: -1.

    Under random actions the way to the right is a bad one; with care it is the best.
    """

    observation_space, action_space = Box(0, 1, (STATES,), np.float32), Discrete(3)
    P = {  # noqa: RUF012
        s: {
            LEFT: [(1.0, max(s - 1, 0), 0.2 * (s == 0), s == 0)],
            RIGHT: [(1.0, min(s + 1, STATES - 1), float(s == STATES - 1), s == STATES - 1)],
            DOWN: [(1.0, s, -float(s > START), s > START)],
        }
        for s in range(STATES)
    }

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(STATES))  # so that a buffer holds all of them, whoever acts
        return np.eye(STATES, dtype=np.float32)[self.state], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        ((_, self.state, reward, ended),) = self.P[self.state][int(action)]
        return np.eye(STATES, dtype=np.float32)[self.state], reward, ended, False, {}


if "bench/Cliff-v0" not in gymnasium.registry:
    gymnasium.register("bench/Cliff-v0", "bench.off_policy:Cliff", disable_env_checker=True)


def true_value(policy: Any) -> float:
    """V of the state in the middle, of a policy (S, A), by solving for it."""
    from fastac.tabular import from_transition_table

    return float(from_transition_table(Cliff.P, np.full(STATES, 1 / STATES), policy).values(GAMMA)[START])


def on_the_cliff(version: str, seed: int, share: float, **options: Any) -> Any:
    """An agent whose buffer holds random actions, and a share of the careful policy's."""
    from fastac.algorithms import off_policy

    agent = off_policy.OffPolicy(off_policy.Config(**{**CLIFF, "version": version, "seed": seed, **options}))
    draws, N = np.random.default_rng(seed), CLIFF["num_envs"]
    for _ in range(CLIFF_STEPS):
        careful = (draws.random(N)[:, None] > CAREFUL[0].cumsum()).sum(1)
        agent.experience.step(np.where(draws.random(N) < share, careful, draws.integers(3, size=N)))
    return agent


def policy_of(agent: Any) -> Any:
    import torch

    with torch.no_grad():
        return agent.actor(torch.eye(STATES)).log_probs.exp().double().numpy()


def fit(version: str, share: float) -> dict[str, Any]:
    """What a critic says of the careful policy in the state in the middle."""
    import torch

    from fastac.algorithms import off_policy

    agent = on_the_cliff(version, 0, share)
    (linear,) = agent.actor.network
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias[:] = torch.from_numpy(np.log(CAREFUL[0]))
    for k in range(FIT_UPDATES):
        agent.q_optimizer.param_groups[0]["lr"] = 0.02 * (1 - k / FIT_UPDATES)
        size = CLIFF["batch_size"]
        agent.update_critic(agent.experience.sample(size), off_policy.Noise(agent.noise(1, size), None, None))
        agent.target.follow()
    with torch.no_grad():
        values = agent.critic(torch.eye(STATES))[START].numpy()
    found = values[0] if version == "values-of-the-buffer" else CAREFUL[START] @ values
    return {"kind": "fit", "version": version, "share": share, "value": round(float(found), 4)}


def learn(version: str, seed: int) -> dict[str, Any]:
    """The true value of the policy while it learns from one buffer of random actions, and of nothing else."""
    samples = 1 if version == "actions-of-the-buffer" else 8
    agent = on_the_cliff(version, seed, 0.0, num_action_samples=samples, policy_lr=5e-3, q_lr=5e-3)
    curve = []
    for k in range(LEARN_UPDATES + 1):
        if k % (LEARN_UPDATES // POINTS) == 0:
            curve.append([k, round(true_value(policy_of(agent)), 4)])
        agent.update()
    return {"kind": "learn", "version": version, "seed": seed, "curve": curve}


def train(version: str, seed: int, **options: Any) -> dict[str, Any]:
    """CartPole; the curve is the mean return of the last 100 episodes."""
    from fastac.algorithms import off_policy
    from fastac.evaluate import evaluate

    samples = 1 if version == "actions-of-the-buffer" else 8
    varied = {"version": version, "seed": seed, "num_action_samples": samples, "log_interval": 500}
    config = off_policy.Config(**{**SHOWN, **varied, **options})
    curve: list[list[float]] = []

    def note(progress: Any) -> None:
        curve.append([progress.global_step, round(progress.episode_return, 1)])

    result = off_policy.train(config, note)
    evaluation = evaluate(result.policy, config.env_id).mean
    return {
        "kind": "train", "version": version, "seed": seed, "evaluation": round(evaluation, 1), "curve": curve,
    }  # fmt: skip


def picked(runs: list[dict[str, Any]], kind: str, version: str) -> list[dict[str, Any]]:
    return [run for run in runs if (run["kind"], run["version"]) == (kind, version)]


def digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result["runs"], sort_keys=True).encode()).hexdigest()[:16]


def stale() -> bool:
    """Whether the figure does not show the recorded runs."""
    return not FIGURE.exists() or digest(record.read(RESULTS)) not in FIGURE.read_text(encoding="utf-8")


def best_policy() -> Any:
    policy = np.zeros((STATES, 3))
    policy[:, RIGHT] = 1.0
    return policy


def draw(result: dict[str, Any], path: Path = FIGURE) -> None:
    """Left: fitted values over the share of the policy in the buffer. Middle, right: returns while learning."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e8ec",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "svg.hashsalt": "fastac",
        "svg.fonttype": "none",
    }
    runs = result["runs"]
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 3.3), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        for version, label in (("correct", "Q, a' from the policy"), ("values-of-the-buffer", "V of the buffer")):
            found = picked(runs, "fit", version)
            look: Any = {"color": COLOURS[version], "marker": "o", "markersize": 5, "label": label}
            left.plot([run["share"] for run in found], [run["value"] for run in found], **look)
        line: Any = {"color": "#6e7781", "linewidth": 1, "linestyle": "--"}
        left.axhline(true_value(CAREFUL), **line, label="its true value")
        left.set_title("What the critic says of a fixed policy")
        left.set_xlabel("share of the buffer's actions that are the policy's")
        left.legend(frameon=False, fontsize=8)
        for axes, kind, scale in ((middle, "learn", 1.0), (right, "train", 1e3)):
            for version, title in TITLES.items():
                curves = [run["curve"] for run in picked(runs, kind, version)]
                steps = [step / scale for step, _ in curves[0]]
                values = np.array([[value for _, value in curve] for curve in curves])
                axes.plot(steps, np.median(values, 0), color=COLOURS[version], label=title)
                axes.fill_between(steps, values.min(0), values.max(0), color=COLOURS[version], alpha=0.12)
        middle.axhline(true_value(best_policy()), **line, label="the best policy")
        middle.set_title("True value, learning from random actions")
        middle.set_xlabel("updates")
        middle.legend(frameon=False, fontsize=8)
        right.set_title("CartPole: return while learning")
        right.set_xlabel("environment steps, thousands")
        metadata = {"Date": None, "Description": f"results {digest(result)}"}
        figure.savefig(path, facecolor="white", metadata=metadata)


def main(draw_only: bool = False) -> int:
    runs: list[dict[str, Any]] = record.read(RESULTS)["runs"] if RESULTS.exists() else []
    wanted: list[tuple[Any, tuple[Any, ...]]] = [
        *((fit, (version, share)) for version in ("correct", "values-of-the-buffer") for share in SHARES),
        *((learn, (version, seed)) for version in TITLES for seed in SEEDS),
        *((train, (version, seed)) for seed in SEEDS for version in TITLES),
    ]
    done = {(run["kind"], run["version"], run.get("seed", run.get("share"))) for run in runs}
    for function, arguments in wanted:
        if draw_only or (function.__name__, *arguments) in done:
            continue
        cpu = time.process_time()
        run = function(*arguments)
        run["cpu_seconds"] = round(time.process_time() - cpu, 2)
        runs = [*runs, run]
        result = {
            "cliff": {**CLIFF, "fit_updates": FIT_UPDATES, "steps": CLIFF_STEPS},
            "cartpole": SHOWN,
            "evaluation": "final weights, mode action, 100 episodes, start k by reset(seed=10000 + k)",
            "machine": record.machine(),
            "runs": runs,
        }
        record.write(RESULTS, result)
        last = run.get("evaluation", run.get("value", run.get("curve", [[0, 0]])[-1][1]))
        print(*(function.__name__, *arguments), f"{last}, {run['cpu_seconds']:.0f} CPU-seconds", flush=True)
    draw(record.read(RESULTS))
    return 0
