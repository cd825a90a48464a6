import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from smolcluster.tracking import plots
from smolcluster.tracking.plots import loss_png, smooth

BLUE, ORANGE, GREEN, RED = (0, 114, 178), (213, 94, 0), (0, 158, 115), (176, 0, 32)
NAN = float("nan")
Picture = Any


def drawn(path: Path, losses: list[Any], checks: list[dict[str, Any]]) -> Picture:
    metrics = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    loss_png(metrics, checks, path, "EDP · gpt on $x_{ [b]")
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def pixels(picture: Picture, colour: tuple[int, int, int]) -> int:
    """How many pixels of the plot have that colour, or nearly."""
    return int((np.abs(picture - np.array(colour)).sum(axis=2) < 30).sum())


def coloured(picture: Picture) -> dict[str, bool]:
    names = {"training": BLUE, "validation": ORANGE, "quality": GREEN, "not finite": RED}
    return {name: pixels(picture, colour) > 20 for name, colour in names.items()}


@pytest.mark.parametrize(
    ("losses", "checks", "shown"),
    [
        ([3.0, 2.0, 1.0], [], {"training"}),
        ([3.0] * 300, [{"step": 100, "loss": 2.0, "accuracy": 0.5}], {"training", "validation", "quality"}),
        ([1.0], [{"step": 1, "loss": 2.0, "perplexity": 7.4}], {"training", "validation", "quality"}),
        ([9.0, None, 1e-3, NAN, 2.0], [{"step": 5, "loss": None}], {"training", "not finite"}),
        ([NAN, NAN, NAN, NAN], [], {"not finite"}),
        ([], [{"step": 4, "loss": 1.0}], {"validation"}),
        ([], [], set()),
    ],
)
def test_what_there_is_can_be_seen(tmp_path: Path, losses: list[Any], checks: list[Any], shown: set[str]) -> None:
    found = coloured(drawn(tmp_path / "loss.png", losses, checks))
    assert {name for name, seen in found.items() if seen} == shown


@pytest.mark.parametrize(
    ("losses", "check", "labels"),
    [
        ([2.0, 1.0], {"loss": 1.0, "perplexity": 2.7}, ["loss (mean per item)", "perplexity"]),
        ([2.0, 1.0], {"loss": 1.0, "accuracy": 0.5}, ["loss (mean per item)", "accuracy (%)"]),
        ([90.0, 1.0], {"loss": 9.0, "perplexity": 8e3}, ["loss (mean per item, log scale)", "perplexity (log scale)"]),
    ],
)
def test_axes_say_what_they_show_and_on_which_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[Any], check: dict[str, Any], labels: list[str]
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "Figure", lambda **words: figures.append(Figure(**words)) or figures[-1])
    drawn(tmp_path / "loss.png", losses, [{"step": 1, **check}, {"step": 2, "loss": 1.0, "perplexity": 1.0}])
    panels = figures[0].axes
    assert [axes.get_ylabel() for axes in panels] == labels
    assert ["log" in label for label in labels] == [axes.get_yscale() == "log" for axes in panels]
    assert panels[-1].get_xlabel() == "optimizer steps"


def test_an_empty_picture_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = drawn(tmp_path / "a.png", [], [])
    never = drawn(tmp_path / "b.png", [NAN], [])
    monkeypatch.setattr(plots, "NOTHING_LOGGED", "")
    silent = drawn(tmp_path / "c.png", [], [])
    middle = (slice(200, 400), slice(300, 700))
    assert (explained[middle] != silent[middle]).any()
    assert (never[middle] != explained[middle]).any()


def test_smoothing_takes_fewer_values_at_the_ends() -> None:
    assert smooth([4.0] * 7, 5) == [4.0] * 7
    assert smooth([1.0, 2.0, 3.0], 1) == [1.0, 2.0, 3.0]
    assert smooth([], 3) == []


def test_no_display_and_no_global_state_are_needed() -> None:
    code = "import sys, smolcluster.tracking.plots; print('matplotlib.pyplot' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
