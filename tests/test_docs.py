"""What is written is true: README blocks and docstring examples run, and docstrings say what a caller needs."""

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from fresh import ROOT

import fastac

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "kernels" / "README.md"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(
    path.relative_to(root).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for root, package in [(ROOT, "fastac"), (ROOT / "kernels", "fastac_kernels")]
    for path in (root / package).rglob("*.py")
)
BLOCKS = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
ESTIMATORS = ("gae", "discounted_returns", "n_step_returns", "lambda_returns", "vtrace", "retrace")


def run_examples(test: doctest.DocTest) -> None:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `>>>` of every module, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith("fastac.compat.") or (error.name or "").partition(".")[0] in ("", "fastac"):
            raise
        pytest.skip(f"the door's library, {error.name}, is not installed")
    if name == "fastac._warmup":
        pytest.skip("compiles everything; tests/test_packaging.py runs the command")
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        if test.examples:
            run_examples(test)


def test_readme_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace, as somebody who pastes them would."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__readme__"}
    for number, (language, text) in enumerate(BLOCKS):
        if language != "python":
            continue
        if ">>>" in text:
            run_examples(doctest.DocTestParser().get_doctest(text, namespace, f"README block {number}", "README.md", 0))
        else:
            exec(compile(text, f"README block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files that a page links to or shows are there, and so are the headings."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
        link = "".join(target)
        if link.startswith("http"):
            continue
        name, _, heading = link.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {link}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert heading in anchors, f"{page.name}: {link}"


def test_readme_and_ci_use_the_same_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in ('-c constraints.txt -e ".[test]"', "pytest"):
        assert command in script
        assert command in README


def test_changelog_names_the_version() -> None:
    assert f"[{fastac.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8") or "[Unreleased]" in (
        ROOT / "CHANGELOG.md"
    ).read_text(encoding="utf-8")


def test_nothing_names_a_machine() -> None:
    """No path of the machine something was written on."""
    pattern = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/[\w.-]+")
    folders = [ROOT / name for name in (".ci", "bench", "fastac", "kernels", "tests")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".md", ".json", "")]
    for path in [*PAGES, *ROOT.glob("*.toml"), *files]:
        if path.is_file() and "__pycache__" not in path.parts:
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path.relative_to(ROOT)}: {found}"


def public_functions() -> list[tuple[str, Any]]:
    things = [(name, getattr(fastac, name)) for name in fastac.__all__ if not name.startswith("__")]
    return [(name, thing) for name, thing in things if callable(thing)]


@pytest.mark.parametrize(("name", "thing"), public_functions(), ids=lambda x: x if isinstance(x, str) else "")
class TestPublicDocstrings:
    def test_sections(self, name: str, thing: Any) -> None:
        """Google style: every argument is described, and what comes back."""
        text = inspect.getdoc(thing) or ""
        assert text.splitlines()[0].endswith("."), name
        signature = inspect.signature(thing)
        if issubclass(thing, tuple) if inspect.isclass(thing) else False:
            for field in thing._fields:
                assert re.search(rf"\b{field}\b", text), f"{name}: {field}"
            return
        parameters = [p for p in signature.parameters if p not in ("self", "args", "kwargs")]
        if parameters:
            assert "Args:" in text, name
        for parameter in parameters:
            assert re.search(rf"^\s+[\w, `*]*\b{parameter}\b[\w, `*()]*:", text, re.MULTILINE), f"{name}: {parameter}"
        if not inspect.isclass(thing) and signature.return_annotation not in (None, "None"):
            assert "Returns:" in text, name

    def test_an_example(self, name: str, thing: Any) -> None:
        if not (inspect.isclass(thing) and issubclass(thing, tuple)):  # a result's example is its function's
            assert ">>>" in (inspect.getdoc(thing) or ""), name


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_say_what_a_caller_needs(name: str) -> None:
    """Equation, shapes, dtypes, time step, errors, source."""
    text = inspect.getdoc(getattr(fastac, name)) or ""
    for word in ("gamma", "(T, N)", "dtype", "s_{t+1}", "Raises:", "ValueError", "TypeError", "quation"):
        assert word in text, f"{name}: {word}"
    assert re.search(r"\b(19|20)\d\d\b", text), f"{name}: no year of a source"
