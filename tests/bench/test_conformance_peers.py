"""The conformance of peers: the recorded results are of today's boundaries, and the table says what they say."""

import copy
import importlib

import numpy as np
import pytest

from bench import conformance as suite
from bench import report
from fastac import conformance
from fastac.conventions import CONVENTIONS, by_environment

RESULT = report.load()["conformance"]
ENTRIES = {row["title"]: row for row in RESULT["results"]}


@pytest.mark.parametrize(
    ("title", "path", "convention", "estimator"), suite.PEERS, ids=[peer[0] for peer in suite.PEERS]
)
def test_every_peer_is_called_in_a_convention_of_the_table(
    title: str, path: str, convention: str, estimator: str
) -> None:
    assert estimator in CONVENTIONS[convention].adapters
    assert title in ENTRIES or path.partition(":")[0].partition(".")[0] in RESULT["missing"]


@pytest.mark.parametrize("title", ENTRIES)
def test_recorded_boundaries_are_todays(title: str) -> None:
    row = ENTRIES[title]
    names = [*row["right"], *row["wrong"], *row["cannot_say"]]
    expected = {
        scenario.name
        for scenario in conformance.SCENARIOS
        if row["estimator"] in scenario.expected and (row["convention"] == "fastac" or not scenario.layout)
    }
    assert len(names) == len(set(names))
    assert set(names) == expected, "run `python -m bench conformance`, then `python -m bench report`"


def test_fastac_is_recorded_right_everywhere() -> None:
    ours = [row for row in RESULT["results"] if row["convention"] == "fastac"]
    assert [row["estimator"] for row in ours] == list(conformance.ESTIMATORS)
    assert not any(row["wrong"] or row["cannot_say"] for row in ours)


def test_the_table_counts_what_was_recorded() -> None:
    text = suite.page(RESULT)
    for row in RESULT["results"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['title']} | "))
        assert f"| {len(row['right'])} | {len(row['wrong'])} |" in line
        for name, detail in row["wrong"].items():
            assert name in line or "NaN" in name, detail


def test_a_changed_collector_is_not_blamed() -> None:
    changed = copy.deepcopy(RESULT)
    changed["rlox_collector"]["dones"][2] = 1.0
    with pytest.raises(report.ReportError, match="up to date"):
        suite.page(changed)


def test_errors_and_nan_in_a_cell() -> None:
    wrong = {"a": "returns in row 1: 2, expected 3", "b": "it raised IndexError: no", "NaN c": "x", "NaN d": "y"}
    assert suite.wrong_words(wrong) == "a. IndexError at b. NaN spreads (2)"
    assert suite.lack_words({"a": "no mask: why", "b": "no mask: why", "c": "other"}) == "no mask (2); other (1)"


def test_tianshous_stand_in_is_a_buffer_to_its_functions() -> None:
    """The same advantages and n-step returns with tianshou's own buffer, on every boundary that it can say."""
    tianshou = pytest.importorskip("tianshou")
    torch = importlib.import_module("torch")
    algorithm = importlib.import_module("tianshou.algorithm.algorithm_base").Algorithm
    data = importlib.import_module("tianshou.data")
    assert tianshou
    for scenario in conformance.SCENARIOS:
        if "gae" not in scenario.expected or scenario.mask:
            continue
        call = scenario.call("gae")
        length, count = call.rewards.shape
        buffer = data.VectorReplayBuffer(length * count, count)
        for t in range(length):
            zeros = np.zeros(count)
            step = data.Batch(
                obs=zeros, act=zeros, rew=call.rewards[t].astype(np.float64), terminated=call.terminated[t],
                truncated=call.cut[t], obs_next=zeros, info={},
            )  # fmt: skip
            buffer.add(step)
        indices = buffer.sample_indices(0)
        assert list(indices) == list(range(length * count))
        nexts = by_environment(call.full_next_values)

        def with_real_buffer(batch, stand_in, indices, v_s_, v_s, buffer=buffer, **options):  # type: ignore[no-untyped-def]
            return algorithm.compute_episodic_return(buffer[indices], buffer, indices, v_s_, v_s, **options)

        adapter = CONVENTIONS["tianshou"].adapters["gae"]
        real, stood_in = adapter(with_real_buffer, call), adapter(algorithm.compute_episodic_return, call)
        for name in real:
            np.testing.assert_array_equal(real[name], stood_in[name], err_msg=scenario.name)
        call = scenario.call("n_step_returns")
        real_batch = algorithm.compute_nstep_return(
            buffer[indices], buffer, indices, lambda _, i, w=nexts: torch.from_numpy(w[i].copy()), gamma=0.5, n_step=2
        )
        stood = CONVENTIONS["tianshou"].adapters["n_step_returns"](
            lambda b, s, i, q, **_: algorithm.compute_nstep_return(b, s, i, q, gamma=0.5, n_step=2), call
        )
        got = real_batch.returns.numpy().reshape(-1)
        np.testing.assert_array_equal(got, by_environment(stood["returns"]), err_msg=scenario.name)
