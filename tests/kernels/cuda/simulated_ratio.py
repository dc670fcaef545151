"""PPO's loss in Numba's simulator against the reference; run by `test_simulated.py`, in a process of its own."""

import math
from typing import Any

import naive_ratio
import numpy as np
import pytest
from simulator import Simulator, rest_while_waiting

import fastac_kernels.cuda as kernels
from fastac_kernels.cuda import launch, ratio, reduction

rest_while_waiting()
NAMES = ("k1", "k2", "k3", "clip_fraction", "mean_ratio")


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    arrays: list[np.ndarray],
    mask: np.ndarray | None,
    threads: int = 4,
    each: int = 1,
    **options: Any,
) -> tuple[float, np.ndarray, dict[str, float], list[str]]:
    monkeypatch.setattr(reduction, "THREADS", threads)
    monkeypatch.setattr(ratio, "EACH", each)
    monkeypatch.setattr(ratio, "BLOCKS", 3)
    ratio.plan.cache_clear()
    dtype, total = arrays[0].dtype.type, arrays[0].size
    simulator = Simulator()
    loss, gradient, statistics = np.full(1, 77, dtype), np.full(total, 77, dtype), np.full(5, 77, dtype)
    partials = np.full(kernels.partials_size(total), 77, dtype)
    with launch.recorded(simulator):
        kernels.ppo_clip_loss_at(
            *(simulator.place(x, False) for x in arrays), 0 if mask is None else simulator.place(mask, False),
            simulator.place(loss, True), simulator.place(gradient, True), simulator.place(statistics, True), total,
            options["clip_coef"], options["dual_clip"] or math.inf, dtype(0),
            simulator.place(partials, True) if partials.size else 0, 0, 0,
        )  # fmt: skip
    for memory in simulator.memory.values():
        assert not memory.is_output or memory.array is partials or np.all(memory.writes == 1)
    return float(loss[0]), gradient, dict(zip(NAMES, statistics.tolist(), strict=True)), simulator.launched


@pytest.mark.parametrize("total", [1, 2, 3, 5, 17, 33])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("each", [1, 9])
def test_ppo_clip_loss(total: int, masked: bool, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several blocks, and by one that does it all."""
    generator = np.random.default_rng([total, masked])
    for dtype, spread, dual_clip in ((np.float32, 0.3, None), (np.float64, 2.0, 3.0)):
        arrays = [generator.normal(size=total).astype(dtype) for _ in range(3)]
        arrays[0] = (arrays[1] + spread * generator.normal(size=total)).astype(dtype)
        arrays[0][generator.random(total) < 0.1] += dtype(30)  # beyond the bound
        mask = None
        if masked:
            mask = generator.choice(np.array([0, 1, 255], np.uint8), size=total)
            for x in arrays:
                x[mask == 0] = np.nan
        wanted = naive_ratio.ppo_clip_loss(*arrays, mask, clip_coef=0.2, dual_clip=dual_clip)
        loss, gradient, statistics, launched = simulate(
            monkeypatch, arrays, mask, each=each, clip_coef=0.2, dual_clip=dual_clip
        )
        assert len(launched) == (1 if total <= 4 * each else 3 if masked else 2)
        tolerance = 2e-5 if dtype is np.float32 else 1e-13
        scale = float(np.abs(np.nan_to_num(arrays[2])).mean() * max(1.0, wanted[2]["mean_ratio"]))
        assert loss == pytest.approx(wanted[0], rel=tolerance, abs=tolerance * scale)
        np.testing.assert_allclose(gradient, wanted[1], rtol=tolerance, atol=tolerance * 1e-3)
        for name in NAMES:
            assert statistics[name] == pytest.approx(wanted[2][name], rel=tolerance, abs=tolerance * 0.1), name


def test_close_to_the_old_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """k3 keeps its digits where exp(x) - 1 - x would be rounding alone."""
    log_probs = np.array([1e-4, -3e-4, 0.0, 0.49, -0.51], np.float32)
    arrays = [log_probs, np.zeros(5, np.float32), np.ones(5, np.float32)]
    for i in range(5):
        one = [x[i : i + 1].copy() for x in arrays]
        wanted = naive_ratio.ppo_clip_loss(*one, clip_coef=0.2)
        assert simulate(monkeypatch, one, None, threads=1, clip_coef=0.2, dual_clip=None)[2]["k3"] == pytest.approx(
            wanted[2]["k3"], rel=1e-6
        )


def test_nothing_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 11: an all-masked loss is 0 with zero gradient, and so is an empty one."""
    for total in (0, 3, 5):
        arrays = [np.full(total, np.nan, np.float32)] * 3
        mask = np.zeros(total, np.uint8) if total else None
        loss, gradient, statistics, _ = simulate(monkeypatch, arrays, mask, clip_coef=0.2, dual_clip=None)
        assert loss == 0
        assert not gradient.any()
        assert set(statistics.values()) == {0.0}


def test_nan_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row R13: a NaN that comes in goes out."""
    arrays = [np.zeros(3, np.float32) for _ in range(3)]
    arrays[0][1], arrays[2][:] = np.nan, 1
    loss, gradient, _, _ = simulate(monkeypatch, arrays, None, clip_coef=0.2, dual_clip=None)
    assert math.isnan(loss)
    np.testing.assert_array_equal(np.isnan(gradient), [False, True, False])
