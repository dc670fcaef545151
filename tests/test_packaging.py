"""The wheel, installed outside the repository without dependencies: what an ordinary user gets."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh import DROP_CAPABILITIES, ROOT, run_python

# What only the extras bring. Blocked, an install behaves like the base one.
EXTRAS = ("torch", "gymnasium", "tyro", "rich", "tensorboard", "matplotlib", "scipy")
BLOCK = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {EXTRAS!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what the repository tracks or would track."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns(
        "__pycache__", "*.egg-info", ".git", ".venv", "build", "dist", "runs", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    try:
        from setuptools import __version__ as version

        if int(version.partition(".")[0]) >= 77:  # the build backend asked for in pyproject.toml: no download
            command.insert(5, "--no-build-isolation")
    except ImportError:
        pass
    run(*command, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def run_installed(site: Path, code: str, *arguments: str, **options: object) -> str:
    """Run `code` against the installed wheel, from a folder where the repository cannot be seen."""
    guard = f"import fastac, fastac_kernels; assert fastac.__file__.startswith({str(site)!r}), fastac.__file__\n"
    return run_python(code if "fastac_guard" in code else guard + code, *arguments, path=str(site), cwd=site, **options)


def test_top_level_names(wheel: Path, site: Path) -> None:
    names = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"fastac", "fastac_kernels"}
    installed = {path.name for path in site.iterdir() if path.name not in ("bin", "__pycache__")}
    assert {name for name in installed if not name.endswith(".dist-info")} == {"fastac", "fastac_kernels"}
    assert not (site / "kernels").exists()


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for root, package in [(ROOT, "fastac"), (ROOT / "kernels", "fastac_kernels")]:
        assert f"{package}/py.typed" in names
        for path in (root / package).rglob("*.py"):
            assert path.relative_to(root).as_posix() in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "bench/", "kernels/")) for name in names)


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(path).decode().splitlines()
    assert "Name: fastac-rl" in lines
    assert any(line.startswith("Requires-Python: >=3.11") for line in lines)
    base = {line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line}
    assert {line.split()[1].split(">")[0].split("<")[0] for line in base} == {"numpy", "numba"}
    extras = {line.split()[1] for line in lines if line.startswith("Provides-Extra:")}
    assert extras == {"torch", "train", "mujoco", "envpool", "cuda", "bench", "test"}


def test_import_is_light(site: Path) -> None:
    """Under 0.5 s and without torch; the best of a few processes, machine code not even needed."""
    code = (
        "import time; start = time.perf_counter(); import fastac; took = time.perf_counter() - start\n"
        "import sys; assert not {'torch', 'gymnasium'} & set(sys.modules)\n"
        "print(took)  # fastac_guard\n"
    )
    best = min(float(run_installed(site, code)) for _ in range(5))
    assert best < 0.5


def test_estimators_on_the_base_install(site: Path) -> None:
    code = BLOCK + (
        "import numpy as np, fastac\n"
        "one = np.ones((3, 2), np.float32)\n"
        "print(fastac.gae(one, one, 1.0, gamma=0.5, gae_lambda=0.5).advantages[:, 0])  # fastac_guard\n"
    )
    for env in ({}, {"NUMBA_DISABLE_JIT": "1"}):
        assert run_installed(site, code, env=env).strip() == "[0.65625 0.625   0.5    ]"


@pytest.mark.skipif(sys.platform == "win32", reason="permission bits")
def test_estimators_where_no_folder_can_be_written(site: Path, tmp_path: Path) -> None:
    """Row N1, installed: read-only site, read-only home, as an unprivileged user."""
    folders = [tmp_path, site, *(path for path in site.rglob("*") if path.is_dir())]
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o555)
    try:
        env = {"HOME": str(tmp_path), "NUMBA_CACHE_DIR": None, "FASTAC_CACHE_DIR": None, "XDG_CACHE_HOME": None}
        code = DROP_CAPABILITIES + (
            "import numpy as np\n"
            "one = np.ones((3, 2), np.float32)\n"
            "print(fastac.gae(one, one, 1.0, gamma=0.5, gae_lambda=0.5).advantages[:, 0])\n"
        )
        assert run_installed(site, code, env=env).strip() == "[0.65625 0.625   0.5    ]"
    finally:
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


COMMAND = "import runpy; sys.argv[0] = 'fastac'; runpy.run_module('fastac', run_name='__main__')  # fastac_guard\n"


def test_warmup_on_the_base_install(site: Path, tmp_path: Path) -> None:
    """Compiles and caches every kernel in under 60 s of processor time; a second time there is nothing to compile."""
    env = {"FASTAC_CACHE_DIR": str(tmp_path), "FASTAC_CACHE": None}
    spent = []
    for _ in range(2):
        before = os.times()
        run_installed(site, BLOCK + COMMAND, "warmup", env=env)
        after = os.times()
        spent.append(after.children_user - before.children_user)
    assert spent[0] < 60
    assert spent[1] < 0.5 * spent[0]
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize(
    "command", [["train", "ppo", "--env-id", "CartPole-v1"], ["eval", "somewhere"], ["resume", "somewhere"]]
)
def test_other_commands_name_the_missing_extra(site: Path, tmp_path: Path, command: list[str]) -> None:
    """One clear line on stderr, exit code 2."""
    said = run_installed(site, BLOCK + COMMAND, *command, returncode=2)
    assert "fastac-rl[train]" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_tensors_without_torch_cannot_be(site: Path) -> None:
    """Asking the base install for something that needs torch says which extra brings it."""
    code = BLOCK + (
        "import fastac  # fastac_guard\n"
        "try:\n"
        "    fastac.load\n"
        "except (ImportError, AttributeError) as error:\n"
        "    print(error)\n"
    )
    assert "fastac-rl[" in run_installed(site, code)
