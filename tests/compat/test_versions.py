"""Doors say once which versions they were tested with."""

import warnings
from importlib import metadata

import pytest
from fresh import run_python

from fastac.compat import _versions
from fastac.compat._versions import check_version


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_versions, "_checked", set())


@pytest.mark.parametrize("version", ["2.7", "2.7.0", "2.8.1", "2.9.2", "2.9.0a4", "2.9.1+cpu"])
def test_a_tested_version_is_silent(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version("somebody", tested=("2.7", "2.9"))


@pytest.mark.parametrize("version", ["2.6.9", "2.10.0", "3.0", "1.9", "unknown"])
def test_another_version_warns_once_and_names_the_range(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    with pytest.warns(UserWarning, match=r"somebody 2\.7 to 2\.9; this is " + version):
        check_version("somebody", tested=("2.7", "2.9"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version("somebody", tested=("2.7", "2.9"))


def test_a_package_without_a_version_warns() -> None:
    with pytest.warns(UserWarning, match="of no known version"):
        check_version("no-such-distribution-at-all", tested=("1", "2"))


def test_nothing_is_imported_eagerly() -> None:
    run_python(
        "import sys, fastac.compat, fastac.compat._versions\n"
        "libraries = 'torch', 'gymnasium', 'stable_baselines3', 'tianshou', 'torchrl', 'verl'\n"
        "assert not [name for name in libraries if name in sys.modules]\n"
    )
