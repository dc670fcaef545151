"""Functions and statements taken out of an installed package's source, without importing the package.

For peers whose import needs a whole training stack, or whose loop stands in the middle of a trainer's method. What runs
is their text as installed; only decorators, which register functions elsewhere, are left out.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def parse(package: str, file: str) -> ast.Module:
    """The syntax tree of a file inside a package.

    Raises:
        ModuleNotFoundError: No such package.
        FileNotFoundError: The installed version has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"the installed {package} has no {file}")
    return ast.parse(path.read_text(encoding="utf-8"))


def execute(body: list[ast.stmt], names: dict[str, Any]) -> dict[str, Any]:
    """Run statements in a namespace that starts as `names`, and give it back."""
    module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
    exec(compile(module, "<peer>", "exec"), names)
    return names


def functions(tree: ast.Module, *wanted: str) -> list[ast.stmt]:
    """The file's functions of these names."""
    found: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            node.decorator_list = []
            found.append(node)
    if len(found) != len(wanted):
        raise LookupError(f"expected the functions {', '.join(wanted)}")
    return found


def between(tree: ast.Module, first: str, last: str) -> list[ast.stmt]:
    """The statements from the one that reads `first` to the next that begins with `last`, in whatever block."""
    for body in blocks(tree):
        texts = [ast.unparse(statement) for statement in body]
        if first in texts:
            start = texts.index(first)
            for stop in range(start, len(texts)):
                if texts[stop].startswith(last):
                    return body[start : stop + 1]
    raise LookupError(f"expected statements from `{first}` to `{last}`")


def blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            yield body


def as_function(body: list[ast.stmt], arguments: str, results: str, names: dict[str, Any]) -> Any:
    """Statements as a function of `arguments` (comma-separated) that returns `results`."""
    (function,) = ast.parse(f"def peer({arguments}): return {results}").body
    assert isinstance(function, ast.FunctionDef)
    function.body = [*body, *function.body]
    return execute([function], dict(names))["peer"]
