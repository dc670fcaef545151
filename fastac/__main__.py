"""The command line: `fastac COMMAND ...` or `python -m fastac COMMAND ...`."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence

HELP = """usage: fastac COMMAND ...

  train ALGORITHM   train on a Gymnasium environment          fastac train ppo --env-id CartPole-v1
  resume RUN        go on with a run where it was saved
  eval RUN          mean return over fixed starts, with a bootstrap interval
  plot RUN...       learning curves over seeds, with intervals
  compare           algorithms x environments x seeds, several at once: train, evaluate, draw
  export RUN OUT    the policy as one file of torch.export, which needs torch alone
  profile ALGORITHM train for a while and print where the time goes; options of train
  conformance F     check anyone's GAE, returns or V-trace at every episode boundary
  warmup            compile and cache all kernels now instead of at their first call

`fastac COMMAND --help` says more. RUN is a run's folder, F is MODULE:FUNCTION.
"""
# What the commands import from the "train" extra; conformance and warmup need none of it.
COMMANDS = ("train", "resume", "eval", "plot", "compare", "export", "profile")
TRAIN_PACKAGES = ("torch", "gymnasium", "tyro", "rich", "tensorboard", "matplotlib")
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (2: the command line, a file or an environment is wrong).

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        usage: fastac COMMAND ...
        ...
        0
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Nobody reads on, as after `| head`; the interpreter flushes once more at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        with contextlib.suppress(OSError):
            what = error.filename or "the output"
            sys.stderr.write(f"fastac {arguments[0]}: cannot write {what} ({error.strerror})\n")
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def run(arguments: list[str]) -> int:
    """Runs a command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    command = arguments[0]
    if command == "--version":
        import fastac

        sys.stdout.write(f"fastac {fastac.__version__}\n")
        return 0
    if command == "warmup":
        return warmup(arguments[1:])
    if command == "conformance":
        from fastac.conformance import command as conformance

        return conformance.main(arguments[1:])
    if command not in COMMANDS:
        sys.stderr.write(
            f"fastac: unknown command {command!r}; expected {', '.join(COMMANDS)}, conformance or warmup\n"
        )
        return 2
    if any(importlib.util.find_spec(package) is None for package in TRAIN_PACKAGES):
        sys.stderr.write(f'fastac {command} needs the "train" extra: pip install "fastac-rl[train]"\n')
        return 2
    from fastac import cli

    return cli.main(arguments)


def warmup(arguments: Sequence[str]) -> int:
    """Compiles and caches every kernel; needs the base install only."""
    if arguments:
        wants_help = arguments[0] in ("-h", "--help")
        stream = sys.stdout if wants_help else sys.stderr
        stream.write("usage: fastac warmup (no options): compiles and caches all kernels\n")
        return 0 if wants_help else 2
    import fastac
    from fastac._progress import Counter

    start = time.perf_counter()
    with Counter() as counter:
        count = fastac.warmup(progress=counter)
    sys.stdout.write(f"{count} kernels ready after {time.perf_counter() - start:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
