"""One drawing of the report: its style, its files, and what its marks say when hovered.

A mark that can be hovered has the id `tip-N`; the page replaces colours by its own variables, so that the same drawing
is light and dark. Colours are Okabe and Ito's, which the colour-blind tell apart; a model keeps its colour everywhere,
a stack its shape, and the 2023 study's figures are hollow.
"""

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, MUTED, GRID, SURFACE = "#1b1f24", "#5c6670", "#dfe3e8", "#fdfdfc"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8f6a00", "#6a3d9a")  # models, in their order
MARKS = {"plain": "X", "single": "o", "balanced": "s", "scaled": "^"}
STUDY_MARK = "D"
WIDE_IN, NARROW_IN = 10.2, 4.1
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sous",  # the same drawing is the same file
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": SURFACE,
    "axes.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "lines.solid_capstyle": "round",
}


@dataclass
class Chart:
    """One drawing and what its marks say when hovered."""

    name: str
    title: str
    figure: Figure
    tips: list[str] = field(default_factory=list)

    def tip(self, text: str) -> str:
        """The id of a mark that says `text`."""
        self.tips.append(text)
        return f"tip-{len(self.tips) - 1}"

    @cached_property
    def svg(self) -> str:
        out = io.StringIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(out, format="svg", metadata={"Date": None})
        return out.getvalue()

    def png(self) -> bytes:
        out = io.BytesIO()
        _ = self.svg  # laid out already, which takes as long as drawing
        self.figure.set_layout_engine("none")
        self.figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
        return out.getvalue()


def log_ticks(axis: Any, steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """The steps and their multiples by ten, written out."""
    axis.set_major_locator(LogLocator(10, steps, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
