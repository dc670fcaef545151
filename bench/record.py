"""What every result carries with it, and how results are written: machine, versions, threads."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "scipy",
    "torch",
    "gymnasium",
    "jax",
    "jaxlib",
    "rlax",
    "tianshou",
    "rlox",
    "torchrl",
    "stable-baselines3",
    "sbx-rl",
    "cpprb",
    "flashbax",
    "trl",
    "verl",
    "pytest-benchmark",
)


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Model name, family and model: virtual machines often hide the name and show the numbers."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
            if not line.strip():
                break
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def commit() -> str | None:
    """Commit of the working tree, with `+` where tracked sources differ from it; None outside a clone."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "fastac", "kernels")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def machine() -> dict[str, Any]:
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores_in_machine": os.cpu_count(),
        "cores_used": len(affinity) if affinity else None,
        "threads": {name: value for name, value in sorted(os.environ.items()) if name.endswith("_NUM_THREADS")},
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "fastac_commit": commit(),
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Write at once or not at all, short lists on one line so that a change in a figure is a change in a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(render(result) + "\n")
    os.replace(temporary, path)


def render(value: Any, indent: str = "") -> str:
    flat = json.dumps(value)
    if not isinstance(value, dict | list) or not value or len(flat) + len(indent) <= 116:
        return flat
    inner = indent + "  "
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
        return flat
    if isinstance(value, list):
        rows = [inner + render(item, inner) for item in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    rows = [f"{inner}{json.dumps(key)}: {render(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result
