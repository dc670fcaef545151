"""Imports point one way, and the base install is numpy and numba alone."""

import ast
import sys
from pathlib import Path

import pytest
from fresh import ROOT, run_python

# Who may import whom: a module only what stands on its own floor or below it, and nothing in a circle.
FLOORS = [
    {"fastac_kernels"},
    {"fastac.returns", "fastac.traces", "fastac.ratio", "fastac.normalize"},  # and the private modules under them
    {"fastac.buffers"},
    {"fastac.networks", "fastac.distributions", "fastac.losses", "fastac.envs"},  # and whatever else trainers share
    {"fastac.algorithms"},
    {"fastac.cli", "fastac.__main__", "fastac.compare", "fastac.curves", "fastac.plot", "fastac.specification"},
]
SHARED = 3
ESTIMATORS = 1  # what `import fastac` inside the package reaches


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path, root): path
    for root, package in [(ROOT, "fastac"), (ROOT / "kernels", "fastac_kernels")]
    for path in sorted((root / package).rglob("*.py"))
}


def floor(module: str) -> int:
    """The floor of a module or of the package it is in."""
    if module == "fastac._warmup":
        return SHARED  # it calls whatever has kernels, and imports it when called
    if module == "fastac" or (module.startswith("fastac._") and module != "fastac.__main__"):
        return ESTIMATORS
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return SHARED


def imports(module: str) -> set[str]:
    """Every module a file imports, wherever in the file; not those for the type checker alone."""
    path, found = FILES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            submodules = {f"{origin}.{alias.name}" for alias in node.names} & set(FILES)
            found.update(submodules)
            if len(submodules) < len(node.names):
                found.add(origin)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("module", sorted(set(FILES) - {"fastac"}))
def test_imports_point_downwards(module: str) -> None:
    """`fastac/__init__.py` alone may look up: it offers names lazily."""
    for imported in imports(module) & set(FILES):
        assert floor(imported) <= floor(module), f"{module} imports {imported}, which stands above it"


def test_no_circles() -> None:
    # A package's __init__ that gathers names from its files is one with them.
    graph = {
        module: {m for m in imports(module) & set(FILES) if m != "fastac"} for module in FILES if module != "fastac"
    }
    finished: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in finished:
            for imported in sorted(graph[module]):
                walk(imported, (*trail, module))
            finished.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.startswith("fastac_kernels") and ".cuda" not in m))
def test_kernels_need_numpy_and_numba_alone(module: str) -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "numba", "llvmlite", "fastac_kernels"}
    assert {imported.partition(".")[0] for imported in imports(module)} <= allowed


def test_kernels_is_a_folder_not_a_package() -> None:
    """An import package called `kernels` would hide Hugging Face's."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for module in FILES:
        assert not any(imported.partition(".")[0] == "kernels" for imported in imports(module))


@pytest.mark.parametrize("module", ["fastac", "fastac.returns", "fastac._arrays", "fastac_kernels"])
def test_torch_stays_out(module: str) -> None:
    run_python(f"import sys, {module}; assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules")


def test_an_array_call_leaves_torch_out() -> None:
    run_python(
        "import sys, numpy as np, fastac\n"
        "x = np.ones((4, 3), np.float32)\n"
        "fastac.gae(x, x, 0.0, gamma=0.9, gae_lambda=0.9)\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_a_training_on_the_cpu_leaves_torchs_compiler_out(tmp_path: Path) -> None:
    """Its import takes two seconds: more than CartPole takes to be learned."""
    code = """
import sys
from fastac.algorithms import actor_critic, ppo
ppo.train(ppo.Config(num_steps=32, total_timesteps=128), run_dir=sys.argv[1])
actor_critic.train(actor_critic.Config(total_timesteps=80, critic_steps=1))
print(*(name for name in ("torch._dynamo", "sympy", "torch.utils.tensorboard", "tensorflow") if name in sys.modules))
"""
    assert run_python(code, str(tmp_path / "run")).strip() == ""


def test_replay_leaves_torch_out() -> None:
    """The base install has no torch: replay works without, and what needs it says so."""
    run_python(
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from fastac.buffers import PrioritizedReplayBuffer, ReplayBuffer, SequenceReplayBuffer, Transitions\n"
        "buffer = ReplayBuffer.from_example(8, {'observations': np.zeros(2, np.float32), 'actions': np.int64(0)})\n"
        "buffer.add(np.ones(2, np.float32), 0, 1.0, np.ones(2, np.float32), True, False)\n"
        "assert isinstance(buffer.sample(4), Transitions)\n"
        "try:\n"
        "    from fastac.buffers import RolloutBuffer\n"
        "except ModuleNotFoundError as error:\n"
        "    assert 'pip install' in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    run_python("import sys, fastac.buffers; assert 'torch' not in sys.modules")
    run_python("import fastac.buffers as b\nfor name in b.__all__: assert getattr(b, name).__name__ == name")


def test_public_names_exist_and_are_listed() -> None:
    run_python(
        "import fastac\nfor name in fastac.__all__: getattr(fastac, name)\nassert isinstance(fastac.__version__, str)\n"
    )
