"""README and figures say what the recorded results say."""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bench import figure, record, report

RESULTS = report.load()
RECORDED = [name for name in report.TABLES if name in RESULTS or any(key.startswith(f"{name}/") for key in RESULTS)]


def page(*names: str) -> str:
    return "\n".join(f"# {name}\n<!-- bench:{name} -->\nold\n<!-- /bench:{name} -->" for name in names)


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.name)
def test_pages_are_what_the_results_give(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert report.fill(text, RESULTS) == text, "run `python -m bench report`"


def test_every_table_is_on_one_page() -> None:
    texts = [path.read_text(encoding="utf-8") for path in report.PAGES]
    for name in report.TABLES:
        assert sum(f"<!-- bench:{name} -->" in text for text in texts) == 1, name


def test_figures_are_of_these_results() -> None:
    assert figure.stale(RESULTS) == [], "run `python -m bench report`"


def test_readme_shows_the_figures() -> None:
    text = report.README.read_text(encoding="utf-8")
    for theme in figure.THEMES:
        assert figure.path(theme).relative_to(record.ROOT).as_posix() in text


def test_filling_twice_changes_nothing_and_keeps_the_rest() -> None:
    once = report.fill(page(*RECORDED) + "\nend\n", RESULTS)
    assert report.fill(once, RESULTS) == once
    assert once.startswith("# ")
    assert once.endswith("\nend\n")
    assert "old" not in once.split()


def test_a_changed_result_changes_the_text_and_the_figure() -> None:
    changed = copy.deepcopy(RESULTS)
    times = changed["gae"]["results"][0]["contenders"]["fastac"]
    times["median_ns"] *= 2
    assert report.gae(changed) != report.gae(RESULTS)
    assert figure.digest(changed) != figure.digest(RESULTS)


def test_losses_are_shown() -> None:
    """A peer that is faster than fastac appears with its ratio below 1."""
    changed = copy.deepcopy(RESULTS)
    changed["gae"]["results"][0]["contenders"]["rlax"].update(median_ns=10.0, over_fastac=0.04)
    assert "(0.04x)**" in report.gae(changed)


def test_missing_peers_are_named() -> None:
    changed = copy.deepcopy(RESULTS)
    changed["gae"]["missing"] = {"rlax": "ModuleNotFoundError"}
    for case in changed["gae"]["results"]:
        case["contenders"].pop("rlax", None)
    assert "Missing: rlax." in report.gae(changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (page("gae", "gae", "training"), "expected `<!-- bench:gae -->` once"),
        (page("gae").replace("<!-- /bench:gae -->", ""), "and `<!-- /bench:gae -->` once after it"),
        (page("gae").replace("<!-- bench:gae -->", ""), "expected `<!-- bench:gae -->` once"),
        (page("gae", "speed"), "no such table"),
    ],
)
def test_wrong_markers_are_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(report.ReportError, match=message) as caught:
        report.fill(text, RESULTS)
    assert "\n" not in str(caught.value)


def test_missing_results_are_one_clear_line() -> None:
    with pytest.raises(report.ReportError, match="run `python -m bench gae` first"):
        report.fill(page("gae"), {})


def test_a_table_without_a_page_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = tmp_path / "README.md"
    only.write_text(page(*(name for name in report.TABLES if name != "doors")), encoding="utf-8")
    before = only.read_text(encoding="utf-8")
    assert report.main(pages=[only]) == 2
    assert capsys.readouterr().err == "no page has a place for doors: <!-- bench:doors -->\n"
    assert only.read_text(encoding="utf-8") == before


def test_every_result_says_where_it_was_measured() -> None:
    assert RESULTS
    for name, result in RESULTS.items():
        machine = result["machine"]
        # What is learned does not depend on how many runs there were at a time.
        assert machine["cores_used"] == 1 or name in ("off_policy", "ladder", "importance_weighted"), name
        assert machine["threads"]["OMP_NUM_THREADS"] == "1", name
        assert machine["versions"]["numba"], name


def test_learning_runs_are_the_fixed_seeds() -> None:
    for name in (key for key in RESULTS if key.startswith("learning/")):
        runs = RESULTS[name]["runs"]
        assert [run["seed"] for run in runs] == list(range(10)), name
        assert all(len(run["returns"]) == 100 for run in runs), name


@pytest.mark.skipif(importlib.util.find_spec("pytest_benchmark") is None, reason="needs pytest-benchmark")
def test_benchmarks_run_at_their_smallest_size_without_peers() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "--smallest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smallest size" in done.stdout
