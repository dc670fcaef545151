"""PPO steps per CPU-second against SB3: equal hyperparameters (CleanRL's, CartPole), one core, in turn.

Both are timed from building the model to the end of learning, nothing logged to disk, as `ppo.train(config)` and
`PPO(...).learn(...)` run. The first round (imports, compilation) is not counted.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

from bench import record
from bench.ppo_settings import ENV_ID, MAPPING, SETTINGS, fastac_config, sb3_model


def main(rounds: int, updates: int) -> None:
    from fastac.algorithms import ppo

    published = SETTINGS["cleanrl"]
    steps = updates * published.num_envs * published.num_steps
    setting = dataclasses.replace(published, total_timesteps=steps)
    runs: dict[str, Callable[[int], object]] = {
        "fastac": lambda seed: ppo.train(fastac_config(setting, seed)),
        "sb3": lambda seed: sb3_model(setting, seed).learn(steps),
    }
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for seed in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run(seed)
            speed = steps / (time.process_time() - start)
            if seed > 0:
                speeds[name].append(round(speed, 1))
            print(
                f"round {seed}{' (not counted)' if seed == 0 else ''} {name}: {speed:.0f} steps per CPU-second",
                flush=True,
            )
    ratios = [own / other for own, other in zip(speeds["fastac"], speeds["sb3"], strict=True)]
    result = {
        "command": f"python -m bench training --rounds {rounds} --updates {updates}",
        "machine": record.machine(),
        "env_id": ENV_ID,
        "hyperparameters": dataclasses.asdict(setting),
        "mapping": MAPPING,
        "steps_per_run": steps,
        "steps_per_cpu_second": {name: {"median": statistics.median(s), "rounds": s} for name, s in speeds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    record.write(record.RESULTS / "training.json", result)
    print(f"fastac over SB3: {result['ratio']} (rounds {result['ratios']})")
