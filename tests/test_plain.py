"""The short way into the kernels is taken where it fits, and nothing common runs into an entry that refuses it."""

from typing import Any

import numpy as np
import pytest

import fastac
from fastac import _plain

T, N = 6, 3
X, LAST, ENDS = np.ones((T, N), np.float32), np.ones(N, np.float32), np.zeros((T, N), np.bool_)
GAE = {"gamma": 0.9, "gae_lambda": 0.9}


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The entries that a call asks for."""
    asked: list[Any] = []

    def ready(dispatcher: Any, dtype: Any) -> bool:
        asked.append(dispatcher)
        return False

    monkeypatch.setattr(_plain, "ready", ready)
    return asked


def test_plain_calls_ask_for_their_entry(entered: list[Any]) -> None:
    fastac.gae(X, X, LAST, ENDS, **GAE)
    fastac.gae(X, X, X, ENDS, ENDS, **GAE)
    fastac.discounted_returns(X, LAST, ENDS, gamma=0.9)
    assert entered == [_plain.gae_short, _plain.gae_full, _plain.discounted_returns_short]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
def test_flags_of_other_dtypes_ask_for_none(entered: list[Any], dtype: Any) -> None:
    """A refusal takes a hundred microseconds; float flags are what CleanRL keeps."""
    flags = ENDS.astype(dtype)
    fastac.gae(X, X, LAST, flags, **GAE)
    fastac.gae(X, X, X, ENDS, flags, **GAE)
    fastac.discounted_returns(X, LAST, flags, gamma=0.9)
    assert entered == []


def test_one_environment_asks_for_none(entered: list[Any]) -> None:
    x, ends = X[:, 0].copy(), ENDS[:, 0].copy()
    fastac.gae(x, x, x, ends, **GAE)
    fastac.gae(x, x, x, ends, ends, **GAE)
    fastac.discounted_returns(x, x, ends, gamma=0.9)
    assert entered == []
