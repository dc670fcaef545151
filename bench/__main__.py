"""`python -m bench`: the interleaved runners and the report."""

import argparse

from bench import one_core  # noqa: F401  (first: it sets thread counts that libraries read when imported)


def seed_list(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    learning = commands.add_parser("learning", help="PPO's learning results over seeds")
    learning.add_argument("--library", choices=("fastac", "sb3"), required=True)
    learning.add_argument("--setting", choices=("cleanrl", "zoo"), required=True)
    learning.add_argument("--seeds", type=seed_list, default=seed_list("0-9"), help="a range such as 0-9")
    arguments = parser.parse_args()

    if arguments.command == "learning":
        from bench import learning as learning_runs

        learning_runs.main(arguments.library, arguments.setting, arguments.seeds)


if __name__ == "__main__":
    main()
