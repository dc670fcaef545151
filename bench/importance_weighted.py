"""What goes wrong with too many gradient steps on one batch, and what three remedies do about it.

CartPole with K steps of Adam on every batch, everything else being equal: importance weights without a bound, with an
adaptive penalty on KL(new || old), with the bound KL(new || old) <= delta by stopping, and PPO's clipped ratio (whole
batches, no value clipping, no entropy bonus). Returns are those of the last 100 training episodes, and of 100 fixed
starts with the most probable action. One record a run; a run that is recorded already is skipped, so an interrupted
command goes on where it stopped.

    python -m bench importance_weighted
    python -m bench importance_weighted --draw     # the figure alone, from what is recorded
"""

import hashlib
import itertools
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from bench import record

STEPS = (1, 5, 20, 80)
SEEDS = (0, 1, 2)
TOTAL_TIMESTEPS = 60_000
TARGET_KL = 0.02
SHOWN_STEPS = 20
CURVE_POINTS = 30
SHARED: dict[str, Any] = {"env_id": "CartPole-v1", "learning_rate": 3e-3, "num_envs": 8, "num_steps": 128}
SHARED |= {"gamma": 0.99, "gae_lambda": 0.95, "vf_coef": 0.5, "ent_coef": 0.0, "anneal_lr": False}
TITLES = {
    "none": "no bound",
    "penalty": "KL penalty",
    "stop": "KL bound",
    "clip": "clipped (PPO)",
}
COLOURS = {"none": "#cf222e", "penalty": "#0550ae", "stop": "#1a7f37", "clip": "#8250df"}
MARKERS = {"none": "X", "penalty": "o", "stop": "s", "clip": "^"}
RESULTS = record.RESULTS / "importance_weighted.json"
FIGURE = record.ROOT / "docs" / "importance_weighted.svg"


def agent_for(method: str, steps: int, seed: int, total_timesteps: int) -> Any:
    from fastac.algorithms import importance_weighted, ppo

    options = {**SHARED, "update_epochs": steps, "seed": seed, "total_timesteps": total_timesteps}
    if method == "clip":
        return ppo.PPO(ppo.Config(**options, num_minibatches=1, clip_coef=0.2, clip_vloss=False))
    config = importance_weighted.Config(**options, constraint=method, target_kl=TARGET_KL)  # type: ignore[arg-type]
    return importance_weighted.ImportanceWeighted(config)


def train(method: str, steps: int, seed: int, total_timesteps: int = TOTAL_TIMESTEPS) -> dict[str, Any]:
    """One run. The divergence is measured in the same way for all, from before and after every update."""
    from fastac.distributions import kl_divergence
    from fastac.evaluate import evaluate
    from fastac.run import torch_threads

    cpu = time.process_time()
    curve: list[list[float]] = []
    kls: list[float] = []
    recent: deque[float] = deque(maxlen=100)
    with torch_threads(1):
        agent = agent_for(method, steps, seed, total_timesteps)
        collector = agent.collector
        while collector.global_step < total_timesteps:
            recent.extend(collector.collect().returns)
            agent.estimate()
            observations = collector.buffer.flat()[0]
            old = agent.actor(observations).frozen()
            agent.update(1.0)
            kls.append(kl_divergence(agent.actor(observations).frozen(), old).mean().item())
            if collector.global_step >= (len(curve) + 1) * total_timesteps / CURVE_POINTS and recent:
                curve.append([collector.global_step, round(float(np.mean(recent)), 1)])
        collector.close()
        evaluation = evaluate(collector.policy, SHARED["env_id"]).mean
    return {
        "method": method,
        "steps": steps,
        "seed": seed,
        "training_return": round(float(np.mean(recent)), 1),
        "evaluation": round(evaluation, 1),
        "median_kl": float(f"{np.median(kls):.4g}"),
        "largest_kl": float(f"{max(kls):.4g}"),
        "curve": curve,
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def picked(runs: list[dict[str, Any]], method: str, steps: int) -> list[dict[str, Any]]:
    return [run for run in runs if (run["method"], run["steps"]) == (method, steps)]


def digest(result: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result["runs"], sort_keys=True).encode()).hexdigest()[:16]


def stale() -> bool:
    """Whether the figure does not show the recorded runs."""
    return not FIGURE.exists() or digest(record.read(RESULTS)) not in FIGURE.read_text(encoding="utf-8")


def draw(result: dict[str, Any], path: Path = FIGURE) -> None:
    """Left: returns over K. Middle: KL of a batch over K. Right: learning curves where K is SHOWN_STEPS."""
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
        for method, title in TITLES.items():
            look: Any = {"color": COLOURS[method], "label": title}
            for axes, name in ((left, "training_return"), (middle, "largest_kl")):
                found = [[run[name] for run in picked(runs, method, steps)] for steps in STEPS]
                axes.plot(STEPS, [np.median(x) for x in found], marker=MARKERS[method], markersize=5, **look)
                axes.fill_between(STEPS, [min(x) for x in found], [max(x) for x in found], alpha=0.12, **look)
            curves = [run["curve"] for run in picked(runs, method, SHOWN_STEPS)]
            points = min(map(len, curves))
            returns = np.array([[value for _, value in curve[:points]] for curve in curves])
            places = [step / 1e3 for step, _ in curves[0][:points]]
            right.plot(places, np.median(returns, 0), **look)
            right.fill_between(places, returns.min(0), returns.max(0), alpha=0.12, **look)
        for axes in (left, middle):
            axes.set_xscale("log")
            axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
            axes.minorticks_off()
            axes.set_xlabel("K, gradient steps on a batch")
        left.set_title("Return of the last 100 training episodes")
        middle.set_title("KL(new || old): the largest of a run, nats")
        middle.set_yscale("log")
        middle.axhline(TARGET_KL, color="#6e7781", linewidth=1, linestyle="--")
        middle.text(STEPS[-1], TARGET_KL * 1.1, "delta", color="#6e7781", ha="right", va="bottom", fontsize=8)
        right.set_title(f"Return while learning, K = {SHOWN_STEPS}")
        right.set_xlabel("environment steps, thousands")
        handles, labels = right.get_legend_handles_labels()
        right.legend(handles[::2], labels[::2], frameon=False, fontsize=8)
        metadata = {"Date": None, "Description": f"results {digest(result)}"}
        figure.savefig(path, facecolor="white", metadata=metadata)


def main(draw_only: bool = False) -> int:
    runs: list[dict[str, Any]] = record.read(RESULTS)["runs"] if RESULTS.exists() else []
    for seed, steps, method in itertools.product(SEEDS, STEPS, TITLES):
        if draw_only or any(run["seed"] == seed for run in picked(runs, method, steps)):
            continue
        done = train(method, steps, seed)
        runs = sorted([*runs, done], key=lambda x: (list(TITLES).index(x["method"]), x["steps"], x["seed"]))
        result = {
            "hyperparameters": {**SHARED, "total_timesteps": TOTAL_TIMESTEPS, "target_kl": TARGET_KL},
            "evaluation": "final weights, mode action, 100 episodes, start k by reset(seed=10000 + k)",
            "machine": record.machine(),
            "runs": runs,
        }
        record.write(RESULTS, result)
        print(
            f"{TITLES[method]}, K = {steps}, seed {seed}: return {done['training_return']:.1f}, "
            f"KL {done['median_kl']:.3g}, {done['cpu_seconds']:.0f} CPU-seconds",
            flush=True,
        )
    draw(record.read(RESULTS))
    return 0
