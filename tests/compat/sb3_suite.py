"""Stable-Baselines3's own tests with our buffers in place of its own: `python tests/compat/sb3_suite.py --sb3 PATH`.

PATH is a source tree of Stable-Baselines3 (https://github.com/DLR-RM/stable-baselines3), of about the version that is
installed; its tests are run from there, against the installed package, and nothing is written to it. `--own` leaves
Stable-Baselines3's classes in place: what fails then has nothing to do with ours. Nothing of it is in this repository.

`test_save_load_large_model` alone takes more than 4 GB of memory and disk; `-- -k "not large_model"` leaves it out.
`test_infinite_horizon[True-SAC]` asks that 500 steps of SAC with seed 1 come within 1 of a value of 50. Other draws are
other runs, and ours ends at 51.08; given the positions that Stable-Baselines3's buffer draws, it ends where that ends:
at 50.66, to the last bit (tests/compat/test_sb3_replay.py has such runs).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "test_buffers.py",
    "test_gae.py",
    "test_n_step_replay.py",
    "test_dict_env.py",
    "test_save_load.py",
    "test_her.py",
    "test_deterministic.py",
    "test_run.py",
    "test_spaces.py",
    "test_vec_normalize.py",
    "test_callbacks.py",
    "test_cnn.py",
    "test_identity.py",
    "test_sde.py",
    "test_train_eval_mode.py",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sb3", type=Path, required=True, help="source tree of Stable-Baselines3")
    parser.add_argument("--own", action="store_true", help="leave its own classes in place")
    parser.add_argument("--files", nargs="+", default=list(FILES), help="of its folder tests")
    parser.add_argument("pytest", nargs=argparse.REMAINDER, help="after --: for pytest")
    arguments = parser.parse_args()
    tests = (arguments.sb3 / "tests").resolve()
    if not tests.is_dir():
        parser.error(f"--sb3: {arguments.sb3} has no folder tests")
    # Its tests are a package that is called as ours is: the plugin is found by its own folder.
    path = [str(Path(__file__).parent), str(ROOT), str(ROOT / "kernels")]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "FASTAC_DOOR": "sb3" if arguments.own else "fastac",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    extra = [argument for argument in arguments.pytest if argument != "--"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "sb3_plugin", "-p", "no:cacheprovider", "-rfEs"]
    files = [str(tests / name) for name in arguments.files]
    return subprocess.run([*command, *extra, *files], cwd=tests.parent, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
