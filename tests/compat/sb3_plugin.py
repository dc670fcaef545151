"""A pytest plugin: Stable-Baselines3's buffer classes are ours, in every module that has them by name.

`FASTAC_DOOR` says which: `fastac` ours, `sb3` their own, for what fails anyway.
"""

import os
import sys
import types

import pytest
import stable_baselines3
from stable_baselines3.common import buffers, off_policy_algorithm, on_policy_algorithm  # noqa: F401 must be loaded

NAMES = (
    "RolloutBuffer",
    "DictRolloutBuffer",
    "ReplayBuffer",
    "DictReplayBuffer",
    "NStepReplayBuffer",
    "HerReplayBuffer",
)
MADE = dict.fromkeys(NAMES, 0)


def replace() -> None:
    """Everything that goes by one of these names in a module of Stable-Baselines3 is ours from now on.

    But for the modules that define them: their classes call each other by name. Those are imported as copies.
    """
    from fastac.compat import sb3

    theirs = {name: getattr(buffers, name, None) or getattr(stable_baselines3, name) for name in NAMES}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "stable_baselines3":
            continue
        found = [key for key, their_class in theirs.items() if getattr(module, key, None) is their_class]
        if any(theirs[key].__module__ == name for key in found):
            original, module = module, types.ModuleType(name)
            module.__dict__.update(original.__dict__)
            sys.modules[name] = module
            parent, _, last = name.rpartition(".")
            setattr(sys.modules[parent], last, module)
        for key in found:
            setattr(module, key, getattr(sb3, key))
    for name in NAMES:
        count(name, getattr(sb3, name))


def count(name: str, our_class: type) -> None:
    init = our_class.__init__

    def counting(self, *args, **kwargs):
        if type(self) is our_class:
            MADE[name] += 1
        init(self, *args, **kwargs)

    our_class.__init__ = counting  # type: ignore[method-assign]


if os.environ.get("FASTAC_DOOR", "fastac") == "fastac":
    replace()


def pytest_report_header(config: pytest.Config) -> str:
    where = stable_baselines3.__file__
    return f"stable_baselines3 {stable_baselines3.__version__} of {where}, buffers of {buffers.ReplayBuffer.__module__}"


def pytest_terminal_summary(terminalreporter) -> None:
    terminalreporter.write_line(f"buffers of fastac that were made: {MADE}")
