"""Figures with sliders: the figure is always shown, the controls only where a person has the notebook open."""

import plotly.graph_objects as go
import pytest

from dpo_kit.workbook.figures import theory as theory_figures
from dpo_kit.workbook.figures.theory import Slider, explore


def draw(beta, noise):
    return go.Figure(go.Scatter(x=[0, 1], y=[beta, noise])).update_layout(title=f"β = {beta:.2f}")


SLIDERS = {"beta": Slider(0.1, 1.0, 10.0, log=True), "noise": Slider(0.0, 0.1, 0.5)}


def test_without_a_person_the_figure_is_shown_at_its_start(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = []
    monkeypatch.setattr(theory_figures, "show", lambda figure, description: shown.append((figure, description)))
    explore(draw, "a line", **SLIDERS)
    (figure, description), *others = shown
    assert not others
    assert list(figure.data[0].y) == [1.0, 0.1]
    assert description == "a line"


def test_with_a_person_the_figure_follows_the_sliders(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    shown = []
    monkeypatch.setattr(theory_figures, "display", shown.append)
    explore(draw, "a line", **SLIDERS)
    beta, noise, figure = shown[0].children
    beta.value, noise.value = 2.0, 0.4
    assert list(figure.data[0].y) == pytest.approx([2.0, 0.4])
    assert figure.layout.title.text == "β = 2.00"
