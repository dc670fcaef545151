"""`fastac conformance MODULE:FUNCTION`: anyone's estimator against the boundaries, from the command line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastac.conformance.report import CallError, check
from fastac.conformance.scenario import ESTIMATORS
from fastac.conventions import CONVENTIONS


class CommandError(Exception):
    """The command is wrong; the message is one line for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def parser() -> argparse.ArgumentParser:
    """The command's options; its help holds the table of conventions."""
    rows = []
    for name, row in CONVENTIONS.items():
        rows += [f"{name}", f"  time: {row.time}", f"  flags: {row.flags}", f"  next values: {row.next_values}"]
        rows += [f"  results: {row.outputs}", f"  left to the caller: {row.caller}"]
        rows += [f"  {estimator}: {how}" for estimator, how in row.function.items()]
    made = _Parser(
        prog="fastac conformance",
        description="Run your GAE, returns, V-trace or Retrace against every episode boundary: what is wrong?",
        epilog="exit code: 0 nothing is wrong, 1 a boundary is wrong, 2 the command is\n\nconventions:\n"
        + "\n".join(f"  {line}" for line in rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("function", metavar="MODULE:FUNCTION", help="importable from here, such as my_package.gae:gae")
    made.add_argument("--convention", default="fastac", metavar="NAME", help=f"{', '.join(CONVENTIONS)} (see below)")
    made.add_argument("--estimator", default="gae", metavar="NAME", help=", ".join(ESTIMATORS))
    made.add_argument("--tensors", action="store_true", help="pass torch tensors, where the convention takes arrays")
    return made


def find(text: str) -> Callable[..., Any]:
    """The function that `MODULE:FUNCTION` names; `FUNCTION` may have dots.

    Args:
        text: Such as `fastac:gae`.

    Returns:
        The function, or a class.

    Raises:
        CommandError: There is none.

    Example:
        >>> find("fastac:gae").__name__
        'gae'
    """
    module_name, separator, path = text.partition(":")
    if not (module_name and separator and path):
        raise CommandError(f"expected MODULE:FUNCTION, got {text!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        inside = f" ({module_name} needs it)" if error.name and not module_name.startswith(error.name) else ""
        raise CommandError(f"no module named {error.name or module_name!r}{inside}") from error
    except Exception as error:  # a module may raise anything at import
        raise CommandError(f"importing {module_name} raised {type(error).__name__}: {error}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise CommandError(f"{module_name} has no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        raise CommandError(f"{text} is no function but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    try:
        options = parser().parse_args(arguments)
        function = find(options.function)
        report = check(function, options.convention, options.estimator, tensors=options.tensors)
    except SystemExit as finished:  # argparse after --help
        return int(finished.code or 0)
    except (CommandError, CallError, ValueError, ModuleNotFoundError) as error:
        text = " ".join(str(error).split())
        where = f"{options.function}: " if isinstance(error, CallError) else ""
        sys.stderr.write(f"fastac conformance: {where}{text}\n")
        return 2
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
