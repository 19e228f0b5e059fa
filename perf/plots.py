"""The report's plots, each drawn once by matplotlib: for PNG and SVG files, and for the page."""

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from perf.chart import COLOURS, STYLE, Chart
from perf.plots_choice import draw_pareto, draw_rates, draw_trade_offs
from perf.plots_time import draw_latency, draw_scaling
from perf.recommend import Recommendation
from perf.summary import Cell

mpl.use("Agg")


def charts(cells: list[Cell], chosen: Recommendation, narrow: bool) -> list[Chart]:
    """Every plot that the cells have data for; narrow ones stack their panels for a phone."""
    valid = [c for c in cells if not c.reasons and c.columns]
    colours = model_colours(cells)
    drawn = []
    with mpl.rc_context(STYLE):
        for name, title, draw, used in _plots(valid, chosen):
            if used:
                chart = Chart(name, title, Figure(layout="constrained"))
                draw(chart, used, colours, narrow)
                drawn.append(chart)
    return drawn


def _plots(valid: list[Cell], chosen: Recommendation) -> Iterator[tuple[str, str, Callable[..., None], Any]]:
    accurate = [c for c in valid if c.accuracy is not None]
    yield "rates", "Answers a second, closed loop", draw_rates, valid
    yield (
        "models",
        "Models: accuracy against what it costs",
        draw_trade_offs,
        [c for c in accurate if c.stack in ("plain", "single")],
    )
    yield "deployments", "Deployments: accuracy against what it costs", draw_trade_offs, accurate
    yield "latency", "Latency at a constant rate", draw_latency, [c for c in valid if "rate" in c.latency]
    yield "scaling", "Replicas follow the load", draw_scaling, [c for c in valid if c.timeline]
    yield "pareto", "Pareto front", draw_pareto, [chosen] if chosen.front else []


def model_colours(cells: list[Cell]) -> dict[str, str]:
    """A colour for each model, by the order of the run."""
    names = list(dict.fromkeys(c.model for c in cells))
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
