import matplotlib.image
import numpy as np
import pytest

from fastac.curves import Curve, Group
from fastac.plot import Outcome, draw
from fastac.run import RunError


def groups():
    steps = np.linspace(0.0, 1000.0, 20)
    return [
        Group(env_id, label, [Curve("ppo", {}, steps, rise * steps + seed) for seed in range(3)])
        for env_id, label, rise in (("A-v0", "ppo", 1.0), ("A-v0", "ppo:sb3", 0.5), ("B-v0", "ppo", 2.0))
    ]


def test_the_same_curves_give_the_same_picture(tmp_path):
    for name in ("one.png", "two.png"):
        draw(tmp_path / name, groups())
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    picture = matplotlib.image.imread(tmp_path / "one.png")
    colours = {tuple(colour) for colour in (picture[..., :3].reshape(-1, 3) * 255).round().astype(int).tolist()}
    assert {(0x1F, 0x6F, 0xEB), (0xC2, 0x41, 0x0C)} <= colours


def test_outcomes_stand_beside_the_curves(tmp_path):
    outcomes = [Outcome("A-v0", "ppo", [1.0, 2.0], 1.5, (1.0, 2.0)), Outcome("C-v0", "ppo", [3.0], 3.0, (3.0, 3.0))]
    draw(tmp_path / "curves.png", groups())
    draw(tmp_path / "both.svg", groups(), outcomes)
    text = (tmp_path / "both.svg").read_text()
    assert text.count('<g id="axes_') == 6, "three environments, two panels each"
    draw(tmp_path / "both.png", groups(), outcomes)
    alone, both = (matplotlib.image.imread(tmp_path / name).shape for name in ("curves.png", "both.png"))
    assert both[1] > 1.9 * alone[1]


def test_a_figure_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match=r"no/such.png: cannot write the figure"):
        draw(tmp_path / "no" / "such.png", groups())
    with pytest.raises(RunError, match=r"figure.xyz: cannot write the figure"):
        draw(tmp_path / "figure.xyz", groups())
