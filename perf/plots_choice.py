"""What is chosen from: rates, accuracy against what it costs, the Pareto front."""

from collections.abc import Callable
from math import ceil, floor, log10
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from perf.candidates import Candidate
from perf.chart import INK, MARKS, MUTED, NARROW_IN, STUDY_MARK, SURFACE, WIDE_IN, Chart, log_ticks
from perf.recommend import Recommendation
from perf.study import MODELS
from perf.summary import Cell
from perf.tables import study_figures


def draw_rates(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """A bar a cell with its interval, grouped by model; the study's figures as hollow marks."""
    models = [name for name in colours if any(c.model == name for c in cells)]
    rows = [c for model in models for c in cells if c.model == model]
    chart.figure.set_size_inches(NARROW_IN if narrow else WIDE_IN, 0.27 * len(rows) + 0.25 * len(models) + 0.7)
    axes = chart.figure.subplots()
    widest = max(c.rate.high for c in rows if c.rate)
    label = (0.12 if narrow else 0.05) * widest  # about as wide as a bar's figure
    y, ticks = 0.0, []
    for k, cell in enumerate(rows):
        y += 0.7 if k and rows[k - 1].model != cell.model else 0.0
        _rate_bar(chart, axes, y, cell, colours[cell.model], label)
        ticks.append((y, f"{cell.model} · {cell.stack}"))
        y += 1
    axes.set_yticks([t for t, _ in ticks], [label for _, label in ticks], color=INK)
    axes.set(ylim=(y - 0.4, -0.6), xlabel="answers a second; ◇ 2023 study")
    axes.set_xlim(0, 1.12 * widest)
    axes.grid(False, axis="y")


def _rate_bar(chart: Chart, axes: Axes, y: float, cell: Cell, colour: str, label: float) -> None:  # noqa: PLR0917
    """A bar and its figure, which stands behind the study's mark where that would cover it."""
    if not cell.rate or not cell.columns:
        return
    value, low, high = cell.rate.value, cell.rate.low, cell.rate.high
    text = (
        f"{cell.model} on {cell.stack}: {value:.1f}/s (95 % interval {low:.1f} to {high:.1f}), "
        f"{cell.columns.availability:.1f} % answered"
    )
    bar = axes.barh(y, value, height=0.72, color=colour, alpha=0.45 if cell.stack == "plain" else 1.0)
    bar[0].set_gid(chart.tip(text))
    axes.plot([low, high], [y, y], color=INK, lw=1)
    study, _ = study_figures(cell)
    place, space = (study, 8) if study and high <= study <= high + label else (high, 5)
    axes.annotate(
        f"{value:.0f}" if value >= 20 else f"{value:.1f}",
        (place, y),
        (space, 0),
        textcoords="offset points",
        va="center",
    )
    if study:
        tip = chart.tip(f"2023 study, {cell.stack}: {study}/s at 10 users")
        axes.plot([study], [y], STUDY_MARK, ms=6, mfc=SURFACE, mec=INK, mew=1.2, gid=tip)


RESPONSE = "response ms"
TRADE_OFFS: tuple[tuple[str, str, Callable[[Cell], float], Callable[[Any], float]], ...] = (
    (
        "memory, MB (log scale)",
        "memory MB",
        lambda c: c.use.memory_mb if c.use else float("nan"),
        lambda s: s.memory_mb,
    ),
    (
        "answers a second (log scale)",
        "answers/s",
        lambda c: c.columns.rate if c.columns else float("nan"),
        lambda s: s.rate,
    ),
    (
        "mean response, 10 users, ms (log scale)",
        RESPONSE,
        lambda c: 1000 * c.columns.response_s if c.columns else float("nan"),
        lambda s: 10_000 / s.rate,
    ),
)


def draw_trade_offs(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """Accuracy against memory, rate and response time: colour is the model, shape the stack."""
    chart.figure.set_size_inches((NARROW_IN, 8.6) if narrow else (WIDE_IN, 3.5))
    panels = chart.figure.subplots(3, 1) if narrow else chart.figure.subplots(1, 3, sharey=True)
    for axes, (label, unit, measure, of_study) in zip(panels, TRADE_OFFS, strict=True):
        for cell in cells:
            look = Look(MARKS[cell.stack], colours[cell.model])
            _mark(chart, axes, (measure(cell), cell.accuracy or 0), look, f"{cell.model} on {cell.stack}, {unit}")
        derived = " (derived: 10 users / rate)" if unit == RESPONSE else ""
        for name in dict.fromkeys(c.model for c in cells if c.model in MODELS):
            study, look = MODELS[name], Look(STUDY_MARK, colours[name], hollow=True)
            _mark(chart, axes, (of_study(study), study.accuracy), look, f"2023 study, {study.name}, {unit}{derived}")
        axes.set(xscale="log", xlabel=label)
        axes.margins(x=0.14, y=0.16)
        low, high = axes.get_xlim()
        few = (1,) if floor(log10(high)) > ceil(log10(low)) else (1, 3)  # more would run together
        log_ticks(axes.xaxis, (1, 2, 5) if high < 50 * low else few)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f} %"))
    for axes in panels if narrow else panels[:1]:
        axes.set_ylabel("top-1 accuracy")
    used = {name: colour for name, colour in colours.items() if any(c.model == name for c in cells)}
    _legend(chart.figure, [s for s in MARKS if any(c.stack == s for c in cells)], used, narrow)


class Look(NamedTuple):
    """Of one mark."""

    mark: str
    colour: str
    hollow: bool = False


def _mark(chart: Chart, axes: Axes, place: tuple[float, float], look: Look, name: str) -> None:
    x, accuracy = place
    tip = chart.tip(f"{name}: {x:.3g}, top-1 {100 * accuracy:.1f} %")
    edge, inside, width, size = (look.colour, SURFACE, 1.6, 7.5) if look.hollow else (SURFACE, look.colour, 0.8, 9)
    axes.plot([x], [100 * accuracy], look.mark, ms=size, mfc=inside, mec=edge, mew=width, gid=tip)


def _legend(figure: Figure, stacks: list[str], models: dict[str, str], narrow: bool) -> None:
    """Colours of models and shapes of stacks, above the panels."""
    line = mpl.lines.Line2D
    named = [line([], [], ls="", marker="s", color=colour, ms=7, label=name) for name, colour in models.items()]
    shapes = [line([], [], ls="", marker=MARKS[s], mfc=MUTED, mec=SURFACE, ms=8, label=s) for s in stacks]
    study = line([], [], ls="", marker=STUDY_MARK, mfc=SURFACE, mec=MUTED, mew=1.4, ms=6.5, label="2023 study")
    handles, columns = [*named, *shapes, study], 3 if narrow else 8
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.2,
    )


def draw_pareto(chart: Chart, chosen: list[Recommendation], colours: dict[str, str], narrow: bool) -> None:
    """Cost against rate: the front filled and named, the dominated pale."""
    front, dominated = chosen[0].front, [c for c, _ in chosen[0].dominated]
    chart.figure.set_size_inches((NARROW_IN, 4.2) if narrow else (WIDE_IN, 4.0))
    axes = chart.figure.subplots()
    for c in (*dominated, *front):
        size, strength = (10, 1.0) if c in front else (8, 0.35)
        axes.plot(
            [c.rate],
            [c.cost],
            MARKS[c.stack],
            ms=size,
            color=colours[c.model],
            alpha=strength,
            mec=SURFACE,
            mew=0.8,
            gid=chart.tip(_pareto_tip(c, c in front)),
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="answers a second (log scale)",
        ylabel="cost of a million answers (log scale)",
    )
    axes.margins(x=0.2, y=0.2)
    names = [(c.rate, c.cost, f"{c.model} · {c.stack}", colours[c.model]) for c in front]
    _name_apart(axes, names, [(c.rate, c.cost) for c in (*front, *dominated)], narrow)
    log_ticks(axes.xaxis)
    log_ticks(axes.yaxis)


def _pareto_tip(c: Candidate, on_front: bool) -> str:
    place = "on the front" if on_front else "dominated"
    return (
        f"{c.name}: {c.rate:.0f}/s, {c.cost:.2f} a million, top-1 {100 * c.accuracy:.1f} %, p99 {c.p99_ms:.0f} ms, "
        f"{c.memory_mb:.0f} MB, {place}"
    )


NEAR, FAR = 8.0, (21, -27, 33, -39, 45, -51, 57, -63, 69)  # points from a mark to its name


def _name_apart(
    axes: Axes, names: list[tuple[float, float, str, str]], marks: list[tuple[float, float]], narrow: bool
) -> None:
    """Names around their marks, each at the first place inside the panel where it covers no other name and no mark;
    one that is not beside its mark has a line to it."""
    axes.autoscale_view()
    width, height = (220, 230) if narrow else (640, 220)  # of the panel, points

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = (width, height) * axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
        return right, up

    taken = [(*place(*mark), 5.0, 8.0) for mark in marks]
    for x, y, name, colour in sorted(names, key=lambda one: -one[1]):
        right, up = place(x, y)
        half = 2.4 * len(name)
        inside = min(max(right, half), width - half) - right
        offsets = [(inside, 9), (inside, -15), (half + NEAR, -3), (-half - NEAR, -3), *((inside, dy) for dy in FAR)]
        free = [
            (dx, dy)
            for dx, dy in offsets
            if half <= right + dx <= width - half + 1
            and 2 <= up + dy <= height - 8
            and all(abs(right + dx - r) > half + h or abs(up + dy + 3 - u) > tall for r, u, h, tall in taken)
        ]
        dx, dy = (free or offsets)[0]
        taken.append((right + dx, up + dy + 3, half, 10.0))
        line = {"arrowstyle": "-", "color": MUTED, "lw": 0.5} if dy in FAR else None
        axes.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha="center", size=8, color=colour, arrowprops=line
        )
