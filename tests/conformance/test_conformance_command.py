"""`fastac conformance`: exit codes, one clear line for a bad command, and the base install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import ROOT, SOURCES, run_python

from fastac.__main__ import main

MINE = """
import fastac

number = 3

def gae(rewards, values, next_values, terminated, truncated=None, mask=None, **options):
    if truncated is not None:
        terminated = terminated | truncated  # the most common mistake
    return fastac.gae(rewards, values, next_values, terminated, None, mask, **options)

def raises(*arguments, **options):
    raise RuntimeError("always")
"""
# Only numpy and numba: what the base install has.
BLOCK = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        blocked = name.partition(".")[0] in ("torch", "gymnasium", "tyro", "rich", "tensorboard", "scipy", "matplotlib")
        return None if blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from fastac.__main__ import main
code = main(["conformance", *sys.argv[1:]])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conformance_mine.py").write_text(MINE)
    (tmp_path / "conformance_broken.py").write_text("import no_such_package_anywhere\n")
    (tmp_path / "conformance_failing.py").write_text("raise RuntimeError('at import')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_nothing_wrong_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "fastac:discounted_returns", "--estimator", "discounted_returns"]) == 0
    assert "0 wrong" in capsys.readouterr().out


def test_a_wrong_boundary_is_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row R1, found in a user's own function."""
    assert main(["conformance", "conformance_mine:gae"]) == 1
    said = capsys.readouterr()
    assert "a time limit is no termination (R1, R8)" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_module:gae"], "no module named 'no_such_module'"),
        (["fastac.no_such_module:gae"], "no module named 'fastac.no_such_module'"),
        (["conformance_broken:gae"], "no module named 'no_such_package_anywhere' (conformance_broken needs it)"),
        (["conformance_failing:gae"], "importing conformance_failing raised RuntimeError: at import"),
        (["conformance_mine:nothing"], "conformance_mine has no 'nothing'"),
        (["conformance_mine:number"], "conformance_mine:number is no function but a int"),
        (["conformance_mine"], "expected MODULE:FUNCTION, got 'conformance_mine'"),
        (["conformance_mine:raises"], "conformance_mine:raises: it raised RuntimeError: always; the fastac convention"),
        (["fastac:gae", "--convention", "brax"], "convention: expected one of fastac, cleanrl"),
        (["fastac:gae", "--estimator", "td"], "estimator: expected one of gae"),
        (["fastac:gae", "--convention", "sb3", "--estimator", "vtrace"], "the sb3 convention has gae"),
        (["fastac:gae", "--loud"], "unrecognized arguments: --loud"),
        ([], "the following arguments are required"),
    ],
)
def test_a_bad_command_is_one_line_and_2(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fastac conformance: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_help_holds_the_table_of_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("cleanrl", "torchrl", "left to the caller", "f(r_t, discount_t, lambda_, values)", "exit code"):
        assert word in out


def test_in_a_process_of_its_own_from_the_users_folder(folder: Path) -> None:
    """The current folder is importable, as it is for `python -m`."""
    command = [sys.executable, "-c", "import sys; sys.path.remove(''); from fastac.__main__ import main; "
               "sys.exit(main(sys.argv[1:]))", "conformance", "conformance_mine:gae"]  # fmt: skip
    env = dict(os.environ) | {"PYTHONPATH": SOURCES}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong:" in done.stdout
    module = [sys.executable, "-m", "fastac", "conformance", "fastac:gae", "--convention", "none"]
    done = subprocess.run(module, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_base_install_is_enough() -> None:
    """Without torch, gymnasium and the rest; the conventions that need them say so."""
    out = run_python(BLOCK, "fastac:n_step_returns", "--estimator", "n_step_returns")
    assert "0 wrong" in out
    out = run_python(BLOCK, "fastac:gae", "--convention", "sb3", returncode=2)
    assert 'the sb3 convention needs torch: pip install "fastac-rl[train]"' in out
    out = run_python(BLOCK, "fastac:gae", "--tensors", returncode=2)
    assert "tensors need torch" in out
