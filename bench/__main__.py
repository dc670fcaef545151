"""`python -m bench`: the interleaved runners and the report."""

import argparse
import sys
from pathlib import Path

from bench import one_core  # noqa: F401  (first: it sets thread counts that libraries read when imported)

LEARNING = ("cleanrl", "cleanrl-unclipped", "zoo", "a2c-zoo", "sac-zoo", "all")


def seed_list(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("gae", "GAE against peers and the limit"),
        ("returns", "discounted, n-step and lambda returns against peers and the limit"),
        ("ratio", "PPO's loss and its gradient against torch, JAX and the limit"),
        ("traces", "V-trace and Retrace against peers and the limit"),
        ("tokens", "masked GAE over tokens against TRL, verl and the limit"),
        ("replay", "replay buffers against peers and the limit"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--seconds", type=float, default=3.0, help="least time spent on a case")
    commands.add_parser("overhead", help="one small call; import; first calls")
    training = commands.add_parser("training", help="whole trainings against SB3, CleanRL, SBX and the limits, in turn")
    training.add_argument("--rounds", type=int, default=5)
    training.add_argument("--seconds", type=float, default=1.0, help="least CPU time of a trainer in a round")
    training.add_argument("--only", default=None, help="trainings and parts whose name holds this text")
    training.add_argument("--cleanrl", type=Path, default=None, help="a checkout of CleanRL; its scripts take part")
    learning = commands.add_parser("learning", help="what PPO, A2C and SAC learn, over seeds, beside SB3")
    learning.add_argument("--library", choices=("fastac", "sb3", "all"), required=True)
    learning.add_argument("--setting", choices=LEARNING, required=True)
    learning.add_argument("--seeds", type=seed_list, default=seed_list("0-9"), help="a range such as 0-9")
    learning.add_argument("--again", action="store_true", help="run recorded seeds anew, in place of what is there")
    ladder = commands.add_parser("ladder", help="what every algorithm learns, over seeds")
    ladder.add_argument(
        "--folder", type=Path, default=Path("runs/ladder"), help="where the runs go; finished ones stay"
    )
    ladder.add_argument("--seeds", type=seed_list, default=seed_list("0-4"), help="a range such as 0-4")
    ladder.add_argument("--jobs", type=int, default=None, help="runs at a time; one a core if not given")
    ladder.add_argument("--only", default=None, help="rows whose algorithm and environment hold this text")
    weighted = commands.add_parser("importance_weighted", help="too many gradient steps on a batch, and three remedies")
    weighted.add_argument("--draw", action="store_true", help="run nothing; draw what is recorded")
    replayed = commands.add_parser("off_policy", help="a replay buffer taken for a rollout, and what becomes of it")
    replayed.add_argument("--draw", action="store_true", help="run nothing; draw what is recorded")
    opened = commands.add_parser("doors", help="what each door changes in a training step of its library")
    opened.add_argument("--cleanrl", type=Path, default=None, metavar="PATH", help="a checkout of CleanRL")
    on_gpu = commands.add_parser("gpu", help="all of it on a CUDA device, in under 8 minutes")
    on_gpu.add_argument("--seconds", type=float, default=0.25, help="time spent on each figure")
    commands.add_parser("conformance", help="which episode boundaries the peers get right")
    report = commands.add_parser(
        "report", help="write the tables and figures of the README and of docs from the recorded results"
    )
    report.add_argument("--check", action="store_true", help="write nothing; exit 1 where something would change")
    arguments = parser.parse_args()
    sys.exit(run(arguments))


def run(arguments: argparse.Namespace) -> int:
    if arguments.command in ("gae", "returns", "traces"):
        from bench import estimators

        estimators.main(arguments.command, estimators.COMMANDS[arguments.command], arguments.seconds)
    elif arguments.command == "ratio":
        from bench import ratio

        ratio.main(arguments.seconds)
    elif arguments.command == "replay":
        from bench import replay

        replay.main(arguments.seconds)
    elif arguments.command == "tokens":
        from bench import tokens

        tokens.main(arguments.seconds)
    elif arguments.command == "overhead":
        from bench import overhead

        overhead.main()
    elif arguments.command == "training":
        from bench import training

        return training.main(arguments.rounds, arguments.seconds, arguments.only, arguments.cleanrl)
    elif arguments.command == "learning":
        from bench import learning, learning_tasks

        for name in learning_tasks.TASKS if arguments.setting == "all" else [arguments.setting]:
            for library in learning.RUNNERS if arguments.library == "all" else [arguments.library]:
                learning.main(library, name, arguments.seeds, again=arguments.again)
    elif arguments.command == "ladder":
        from bench import ladder

        return ladder.main(arguments.folder, tuple(arguments.seeds), arguments.jobs, arguments.only)
    elif arguments.command == "importance_weighted":
        from bench import importance_weighted

        return importance_weighted.main(draw_only=arguments.draw)
    elif arguments.command == "off_policy":
        from bench import off_policy

        return off_policy.main(draw_only=arguments.draw)
    elif arguments.command == "doors":
        from bench import doors

        return doors.main(arguments.cleanrl and arguments.cleanrl.resolve())
    elif arguments.command == "gpu":
        from bench import gpu

        return gpu.main(arguments.seconds)
    elif arguments.command == "conformance":
        from bench import conformance

        conformance.main()
    else:
        from bench import report

        return report.main(check=arguments.check)
    return 0


if __name__ == "__main__":
    main()
