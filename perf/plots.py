"""The report's plots, drawn once each by matplotlib: PNG and SVG files, and SVG in the page.

A mark that can be hovered has the id `tip-N`; the page replaces colours by its own variables, so that the same drawing
is light and dark. Colours are Okabe and Ito's, which the colour-blind tell apart; a model keeps its colour everywhere,
a stack its shape, and the 2023 study's figures are hollow.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from perf.recommend import Candidate, Recommendation
from perf.study import MODELS
from perf.summary import Cell

mpl.use("Agg")

INK, MUTED, GRID, SURFACE = "#1b1f24", "#5c6670", "#dfe3e8", "#fdfdfc"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8f6a00", "#6a3d9a")  # models, in their order
MARKS = {"plain": "X", "single": "o", "balanced": "s", "scaled": "^"}
STUDY_MARK = "D"
WIDE_IN, NARROW_IN = 10.2, 4.6
STYLE = {
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
        self.figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
        return out.getvalue()


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
    yield "models", "Models: accuracy against what it costs", draw_trade_offs, [c for c in accurate if c.stack in ("plain", "single")]
    yield "deployments", "Deployments: accuracy against what it costs", draw_trade_offs, accurate
    yield "latency", "Latency at a constant rate", draw_latency, [c for c in valid if "rate" in c.latency]
    yield "scaling", "Replicas follow the load", draw_scaling, [c for c in valid if c.timeline]
    yield "pareto", "Pareto front", draw_pareto, [chosen] if chosen.front else []


def model_colours(cells: list[Cell]) -> dict[str, str]:
    """A colour for each model, by the order of the run."""
    names = list(dict.fromkeys(c.model for c in cells))
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def draw_rates(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """A bar a cell with its interval, grouped by model; the study's figures as hollow marks."""
    models = list(dict.fromkeys(c.model for c in cells))
    rows = [c for model in models for c in cells if c.model == model]
    chart.figure.set_size_inches(NARROW_IN if narrow else WIDE_IN, 0.27 * len(rows) + 0.25 * len(models) + 0.7)
    axes = chart.figure.subplots()
    y, ticks = 0.0, []
    for k, cell in enumerate(rows):
        y += 0.7 if k and rows[k - 1].model != cell.model else 0.0
        _rate_bar(chart, axes, y, cell, colours[cell.model])
        ticks.append((y, f"{cell.model} · {cell.stack}"))
        y += 1
    axes.set_yticks([t for t, _ in ticks], [label for _, label in ticks], color=INK)
    axes.set(ylim=(y - 0.4, -0.6), xlabel="answers a second; ◇ 2023 study, plain recipe")
    axes.set_xlim(0, 1.12 * max(c.rate.high for c in rows if c.rate))
    axes.grid(False, axis="y")


def _rate_bar(chart: Chart, axes: Axes, y: float, cell: Cell, colour: str) -> None:
    assert cell.rate and cell.columns  # noqa: S101 - charts() passes valid cells
    value, low, high = cell.rate.value, cell.rate.low, cell.rate.high
    text = f"{cell.model} on {cell.stack}: {value:.1f}/s (95 % interval {low:.1f} to {high:.1f}), {cell.columns.availability:.1f} % answered"
    bar = axes.barh(y, value, height=0.72, color=colour, alpha=0.45 if cell.stack == "plain" else 1.0)
    bar[0].set_gid(chart.tip(text))
    axes.plot([low, high], [y, y], color=INK, lw=1)
    axes.annotate(f"{value:.0f}" if value >= 20 else f"{value:.1f}", (high, y), (5, 0), textcoords="offset points", va="center")
    study = MODELS.get(cell.model)
    if study and cell.stack == "plain":
        tip = chart.tip(f"2023 study, {study.name}: {study.rate}/s at 10 users")
        axes.plot([study.rate], [y], STUDY_MARK, ms=6, mfc=SURFACE, mec=INK, mew=1.2, gid=tip)


TRADE_OFFS: tuple[tuple[str, str, Callable[[Cell], float], Callable[[Any], float | None]], ...] = (
    ("memory, MB (log scale)", "MB", lambda c: c.use.memory_mb if c.use else float("nan"), lambda s: s.memory_mb),
    ("answers a second (log scale)", "/s", lambda c: c.columns.rate if c.columns else float("nan"), lambda s: s.rate),
    ("mean response, 10 users, ms (log scale)", "ms", lambda c: 1000 * c.columns.response_s if c.columns else float("nan"), lambda s: 10_000 / s.rate),
)


def draw_trade_offs(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """Accuracy against memory, rate and response time: colour is the model, shape the stack."""
    chart.figure.set_size_inches((NARROW_IN, 8.6) if narrow else (WIDE_IN, 3.5))
    panels = chart.figure.subplots(3, 1) if narrow else chart.figure.subplots(1, 3, sharey=True)
    for axes, (label, unit, measure, of_study) in zip(panels, TRADE_OFFS, strict=True):
        for cell in cells:
            _mark(chart, axes, measure(cell), 100 * (cell.accuracy or 0), MARKS[cell.stack], colours[cell.model], f"{cell.model} on {cell.stack}", unit)
        for name in dict.fromkeys(c.model for c in cells if c.model in MODELS):
            study = MODELS[name]
            _mark(chart, axes, of_study(study) or 0, 100 * study.accuracy, STUDY_MARK, colours[name], f"2023 study, {study.name}", unit, hollow=True)
        axes.set(xscale="log", xlabel=label)
        axes.margins(x=0.14, y=0.16)
        _log_ticks(axes.xaxis)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f} %"))
    for axes in panels if narrow else panels[:1]:
        axes.set_ylabel("top-1 accuracy")
    used = {name: colour for name, colour in colours.items() if any(c.model == name for c in cells)}
    _legend(chart.figure, [s for s in MARKS if any(c.stack == s for c in cells)], used, narrow)


def _mark(chart: Chart, axes: Axes, x: float, y: float, mark: str, colour: str, name: str, unit: str, hollow: bool = False) -> None:
    tip = chart.tip(f"{name}: top-1 {y:.1f} %, {x:.3g} {unit}")
    axes.plot([x], [y], mark, ms=7.5 if hollow else 9, mfc=SURFACE if hollow else colour, mec=colour if hollow else SURFACE, mew=1.6 if hollow else 0.8, gid=tip)


def _legend(figure: Figure, stacks: list[str], models: dict[str, str], narrow: bool) -> None:
    """Colours of models and shapes of stacks, above the panels."""
    line = mpl.lines.Line2D
    named = [line([], [], ls="", marker="s", color=colour, ms=7, label=name) for name, colour in models.items()]
    shapes = [line([], [], ls="", marker=MARKS[s], mfc=MUTED, mec=SURFACE, ms=8, label=s) for s in stacks]
    study = line([], [], ls="", marker=STUDY_MARK, mfc=SURFACE, mec=MUTED, mew=1.4, ms=6.5, label="2023 study")
    handles, columns = [*named, *shapes, study], 3 if narrow else 8
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, labelcolor=INK, handletextpad=0.2, columnspacing=1.2)


def draw_latency(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """Percentiles of each stack, a panel a model; the axis gives each nine of the tail the same room."""
    models = list(dict.fromkeys(c.model for c in cells))
    chart.figure.set_size_inches((NARROW_IN, 2.6 * len(models)) if narrow else (WIDE_IN, 3.1))
    shape = (len(models), 1) if narrow else (1, len(models))
    for axes, model in zip(chart.figure.subplots(*shape, squeeze=False).flat, models, strict=True):
        ends: list[tuple[float, str]] = []
        for cell in (c for c in cells if c.model == model):
            ends.append((_latency_line(chart, axes, cell, colours[model]), cell.stack))
        _label_ends(axes, ends)
        axes.set(title=model, yscale="log", xlim=(0, 3.15), xlabel="percentile of requests")
        axes.set_xticks([0, np.log10(2), 1, 2, 3], ["0", "50", "90", "99", "99.9"])
        _log_ticks(axes.yaxis)
        axes.margins(y=0.12)
        axes.set_ylabel("ms (log scale)")


LINES = {"plain": (0, (1, 1.4)), "single": "solid", "balanced": (0, (5, 1.5)), "scaled": (0, (5, 1.5, 1, 1.5))}


def _latency_line(chart: Chart, axes: Axes, cell: Cell, colour: str) -> float:
    latency = cell.latency["rate"]
    inner = [(p, ms) for p, ms in latency.curve if p < 99.95]
    x = [-np.log10(1 - p / 100) for p, _ in inner]
    axes.plot(x, [ms for _, ms in inner], color=colour, ls=LINES[cell.stack], lw=1.8)
    for place, (p, ms) in zip(x, inner, strict=True):
        if p in (50, 90, 95, 99, 99.9):
            tip = chart.tip(f"{cell.model} on {cell.stack} at {latency.offered:.0f}/s: {p:g} % within {ms:.1f} ms")
            axes.plot([place], [ms], MARKS[cell.stack], color=colour, ms=5, mec=SURFACE, mew=0.6, gid=tip)
    return inner[-1][1]


def _label_ends(axes: Axes, ends: list[tuple[float, str]]) -> None:
    """Names at the right end of lines, moved apart where lines end close together (in log10 ms)."""
    ends = sorted(ends)
    places = [np.log10(ms) for ms, _ in ends]
    span = max(0.6, (max(places) - min(places)) * 1.3) if places else 1
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + 0.085 * span)
    for place, (_, name) in zip(places, ends, strict=True):
        axes.annotate(name, (3.02, 10**place), (4, 0), textcoords="offset points", va="center", size=8, annotation_clip=False)


def draw_scaling(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """Offered and answered rate, and the replicas below, over the time of the varying load."""
    n = len(cells)
    chart.figure.set_size_inches((NARROW_IN, 3.0 * n) if narrow else (WIDE_IN, 3.6))
    rows, columns = (2 * n, 1) if narrow else (2, n)
    grid = chart.figure.subplots(rows, columns, squeeze=False, height_ratios=[2, 1] * (rows // 2))
    for k, cell in enumerate(cells):
        load, replicas = (grid[2 * k, 0], grid[2 * k + 1, 0]) if narrow else (grid[0, k], grid[1, k])
        _scaling_panel(chart, load, replicas, cell, colours[cell.model])


def _scaling_panel(chart: Chart, load: Axes, replicas: Axes, cell: Cell, colour: str) -> None:
    at = [p["at_s"] for p in cell.timeline]
    load.plot(at, [p["offered"] for p in cell.timeline], color=MUTED, lw=1.2, ls="--", drawstyle="steps-pre")
    load.plot(at, [p["answered"] for p in cell.timeline], color=colour, lw=1.8)
    replicas.step(at, [p["replicas"] for p in cell.timeline], color=INK, lw=1.8, where="pre")
    for p in cell.timeline:
        tip = chart.tip(f"{cell.model}, {p['at_s']:.0f} s: {p['offered']:.0f}/s offered, {p['answered']:.0f}/s answered, median {p['p50_ms']:.0f} ms, {p['replicas']:.0f} replicas")
        load.plot([p["at_s"]], [p["answered"]], "o", ms=9, color=colour, alpha=0.0, gid=tip)
    most = max(p["replicas"] for p in cell.timeline)
    load.set(title=f"{cell.model}: - - offered, — answered", ylabel="requests/s", ylim=(0, None), xlim=(0, at[-1]))
    load.tick_params(labelbottom=False)
    replicas.set(ylabel="replicas", xlabel="seconds", ylim=(0, most + 0.6), xlim=(0, at[-1]), yticks=range(int(most) + 1))


def draw_pareto(chart: Chart, chosen: list[Recommendation], colours: dict[str, str], narrow: bool) -> None:
    """Cost against rate: the front filled and named, the dominated pale."""
    front, dominated = chosen[0].front, [c for c, _ in chosen[0].dominated]
    chart.figure.set_size_inches((NARROW_IN, 4.2) if narrow else (WIDE_IN, 4.0))
    axes = chart.figure.subplots()
    for c in (*dominated, *front):
        size, strength = (10, 1.0) if c in front else (8, 0.35)
        axes.plot([c.rate], [c.cost], MARKS[c.stack], ms=size, color=colours[c.model], alpha=strength, mec=SURFACE, mew=0.8, gid=chart.tip(_pareto_tip(c, c in front)))
    axes.set(xscale="log", yscale="log", xlabel="answers a second (log scale)", ylabel="cost of a million answers (log scale)")
    axes.margins(x=0.2, y=0.2)
    _name_apart(axes, [(c.rate, c.cost, f"{c.model} · {c.stack}", colours[c.model]) for c in front], narrow)
    _log_ticks(axes.xaxis)
    _log_ticks(axes.yaxis)


def _pareto_tip(c: Candidate, on_front: bool) -> str:
    place = "on the front" if on_front else "dominated"
    return f"{c.name}: {c.rate:.0f}/s, {c.cost:.2f} a million, top-1 {100 * c.accuracy:.1f} %, p99 {c.p99_ms:.0f} ms, {c.memory_mb:.0f} MB, {place}"


OFFSETS = ((0, 9), (0, -15), (0, 21), (0, -27), (0, 33), (0, -39))  # points: above, below, and further away


def _name_apart(axes: Axes, marks: list[tuple[float, float, str, str]], narrow: bool) -> None:
    """Names above or below their marks, each at the first place where it covers no other name."""
    axes.autoscale_view()
    width, height = (250, 230) if narrow else (640, 220)  # of the panel, points
    taken: list[tuple[float, float, float]] = []
    for x, y, name, colour in sorted(marks, key=lambda mark: -mark[1]):
        right, up = (width, height) * axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        half = 2.4 * len(name)
        free = [(dx, dy) for dx, dy in OFFSETS if all(abs(right - r) > half + h or abs(up + dy - u) > 10 for r, u, h in taken)]
        dx, dy = (free or OFFSETS)[0]
        taken.append((right, up + dy, half))
        axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha="center", size=8, color=colour)


def _log_ticks(axis: Any) -> None:
    """1, 2, 5 and their multiples by ten, written out."""
    axis.set_major_locator(LogLocator(10, (1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
