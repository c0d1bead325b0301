"""The controller's states, drawn."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kvguard.guard.controller import State
from kvguard.report.drawing import GREY, INK, canvas


def state_machine(path: Path) -> Path:
    """Draw the controller's states and what moves a row between them."""
    with canvas(path, "The controller", size=(9.2, 3.6)) as ((axis,),):
        axis.set(xlim=(0, 9.2), ylim=(0, 3.3), aspect="equal")
        axis.axis("off")
        places = {State.NORMAL: 1.1, State.ALERT: 4.6, State.SAFE: 8.1}
        roles = {
            State.NORMAL: "decode with\nthe compressed cache",
            State.ALERT: "hazard has risen:\nwatch",
            State.SAFE: "act: restore the cache,\nor rewind and restore",
        }
        for state, x in places.items():
            axis.add_patch(
                FancyBboxPatch(
                    (x - 0.85, 1.2), 1.7, 0.95, boxstyle="round,pad=0.08",
                    facecolor={State.NORMAL: "#e8eef4", State.ALERT: "#fbe6bf", State.SAFE: "#c9ebdf"}[state],
                    edgecolor=INK, linewidth=1.2,
                )
            )  # fmt: skip
            axis.text(x, 1.9, state.name, ha="center", va="center", fontweight="bold", fontsize=11)
            axis.text(x, 1.5, roles[state], ha="center", va="center", fontsize=8)
        arrow = _arrows(axis)
        arrow((2.05, 1.85), (3.65, 1.85), "arc3,rad=0", (2.85, 2.0), "hazard ≥ tau_low\nfor k tokens", INK)
        arrow((5.55, 1.85), (7.15, 1.85), "arc3,rad=0", (6.35, 2.0), "hazard ≥ tau_high\nfor k tokens", INK)
        arrow((3.65, 1.45), (2.05, 1.45), "arc3,rad=0", (2.85, 1.02), "hazard < tau_low\nfor j tokens", GREY)
        arrow((1.4, 2.25), (7.8, 2.25), "arc3,rad=-0.16", (4.6, 2.82), "hazard ≥ tau_high for k tokens", INK)
        arrow((7.8, 1.1), (1.4, 1.1), "arc3,rad=-0.13", (4.6, 0.38), "hazard < tau_low for j tokens", GREY)
    return path


def _arrows(axis: Axes) -> Callable[..., None]:
    def draw(
        start: tuple[float, float],
        end: tuple[float, float],
        bend: str,
        place: tuple[float, float],
        text: str,
        colour: str,
    ) -> None:
        axis.add_patch(
            FancyArrowPatch(
                start,
                end,
                connectionstyle=bend,
                arrowstyle="-|>",
                mutation_scale=14,
                color=colour,
                linewidth=1.5,
            )
        )
        axis.text(*place, text, ha="center", va="bottom", fontsize=8.5, color=INK)

    return draw
