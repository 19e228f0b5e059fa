"""What happens over time and in the tail: latency percentiles, replicas that follow the load."""

import numpy as np
from matplotlib.axes import Axes

from perf.chart import INK, MARKS, MUTED, NARROW_IN, SURFACE, WIDE_IN, Chart, log_ticks
from perf.summary import Cell


def draw_latency(chart: Chart, cells: list[Cell], colours: dict[str, str], narrow: bool) -> None:
    """Percentiles of each stack, a panel a model; the axis gives each nine of the tail the same room."""
    models = [name for name in colours if any(c.model == name for c in cells)]
    chart.figure.set_size_inches((NARROW_IN, 2.6 * len(models)) if narrow else (WIDE_IN, 3.1))
    shape = (len(models), 1) if narrow else (1, len(models))
    for axes, model in zip(chart.figure.subplots(*shape, squeeze=False).flat, models, strict=True):
        own = [c for c in cells if c.model == model]
        ends = [(_latency_line(chart, axes, cell, colours[model]), cell.stack) for cell in own]
        _label_ends(axes, ends)
        axes.set(title=model, yscale="log", xlim=(0, 3.15), xlabel="percentile of requests")
        axes.set_xticks([0, np.log10(2), 1, 2, 3], ["0", "50", "90", "99", "99.9"])
        log_ticks(axes.yaxis)
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
        axes.annotate(
            name, (3.02, 10**place), (4, 0), textcoords="offset points", va="center", size=8, annotation_clip=False
        )


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
        tip = chart.tip(
            f"{cell.model}, {p['at_s']:.0f} s: {p['offered']:.0f}/s offered, {p['answered']:.0f}/s answered, median "
            f"{p['p50_ms']:.0f} ms, {p['replicas']:.0f} replicas"
        )
        load.plot([p["at_s"]], [p["answered"]], "o", ms=9, color=colour, alpha=0.0, gid=tip)
    most = max(p["replicas"] for p in cell.timeline)
    load.set(title=f"{cell.model}: - - offered, — answered", ylabel="requests/s", ylim=(0, None), xlim=(0, at[-1]))
    load.tick_params(labelbottom=False)
    replicas.set(
        ylabel="replicas", xlabel="seconds", ylim=(0, most + 0.6), xlim=(0, at[-1]), yticks=range(int(most) + 1)
    )
