"""Two runs side by side, with intervals, so that a change can be judged."""

from math import isnan, nan
from typing import Any, NamedTuple

from perf.intervals import Interval, enough, proportion, ratio
from perf.summary import Cell, Latency, yardstick_of
from perf.tables import Table

TIMED = "constant rate"
ANSWERED, ACCURACY = "answered %", "top-1 %"
MORE_IS_BETTER = ("answers/s", ANSWERED, ACCURACY)
SAME_RATE = 0.05
LEAST = 0.01  # a smaller difference is none: memory hardly varies within a run, and by more from start to start


class Difference(NamedTuple):
    """One figure of one cell in both runs."""

    name: str  # stack and model
    figure: str
    before: Interval
    after: Interval
    ratio: Interval  # after / before
    more_is_better: bool

    @property
    def verdict(self) -> str:
        """better, worse or no difference shown; a figure without an interval gets no verdict."""
        if isnan(self.ratio.low):
            return "no interval"
        small = abs(self.ratio.value - 1) < LEAST and self.figure != ANSWERED
        if self.ratio.low <= 1 <= self.ratio.high or small:
            return "no difference shown"
        return "better" if (self.ratio.value > 1) == self.more_is_better else "worse"


def compare(before: list[Cell], after: list[Cell]) -> list[Difference]:
    """Every figure that both runs have, of the cells valid in both."""
    old = {(c.stack, c.model): c for c in before if not c.reasons}
    pairs = [(old[key], c) for c in after if not c.reasons and (key := (c.stack, c.model)) in old]
    return [difference for a, b in pairs for difference in _differences(a, b)]


def left_out(before: list[Cell], after: list[Cell]) -> list[str]:
    """Cells that are not in both runs or not valid in both, and constant rates that cannot be compared, with the
    reason."""
    old, new = ({f"{c.stack} {c.model}": c for c in cells} for cells in (before, after))
    whole, timed = [], []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        missing = [why for run, cell in (("first", a), ("second", b)) if (why := _missing(run, cell))]
        if missing:
            whole.append(f"{name}: {' and '.join(missing)}")
        elif a and b and (why := other_rate(a, b)):
            timed.append(f"{name}, {TIMED}: {why}")
    return whole + timed


def _missing(run: str, cell: Cell | None) -> str:
    """Why a cell of a run cannot be compared; empty where it can."""
    if cell is None:
        return f"not in the {run} run"
    return f"invalid in the {run} run ({cell.reasons[0]})" if cell.reasons else ""


def unlike(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was not the same in two runs and moves their figures, beside what is compared."""
    conditions = [
        {"photos": run["photos"], **run["options"], **{name: run["machine"][name] for name in ("cpu", "cores")}}
        for run in (before, after)
    ]
    names = sorted({*conditions[0], *conditions[1]} - {"stacks", "models"})
    values = [(name, *(known.get(name) for known in conditions)) for name in names]
    return [f"{name} ({old} and {new})" for name, old, new in values if old != new]


def _differences(a: Cell, b: Cell) -> list[Difference]:
    name, old, new = f"{a.stack} {a.model}", _figures(a), _figures(b)
    if other_rate(a, b):
        new = {figure: value for figure, value in new.items() if TIMED not in figure}
    return [
        Difference(name, figure, old[figure], new[figure], ratio(old[figure], new[figure]), figure in MORE_IS_BETTER)
        for figure in old
        if figure in new
    ]


def other_rate(a: Cell, b: Cell) -> str:
    """Why latency at the constant rate cannot be compared; empty: both kept up, at rates within 5 % of each other."""
    old, new = a.latency.get("rate"), b.latency.get("rate")
    if not old or not new:
        return "not in both runs" if old or new else ""
    late = [run for run, load in (("first", old), ("second", new)) if not load.kept_up]
    if late:
        return (
            f"did not keep up in the {' and the '.join(late)} run (offered: {old.offered:.1f} and {new.offered:.1f}/s)"
        )
    if abs(new.offered / old.offered - 1) > SAME_RATE:
        return f"{old.offered:.1f} and {new.offered:.1f}/s are more than {SAME_RATE:.0%} apart (--rate makes them one)"
    return ""


def _figures(cell: Cell) -> dict[str, Interval]:
    figures: dict[str, Interval] = {"answers/s": cell.rate} if cell.rate else {}
    if cell.sent:
        share = proportion(1 - cell.failed / cell.sent, cell.sent)
        figures[ANSWERED] = Interval(*(100 * value for value in (share.value, share.low, share.high)))
    if cell.accuracy is not None:  # of the same photos: exact
        figures[ACCURACY] = Interval(100 * cell.accuracy, 100 * cell.accuracy, 100 * cell.accuracy)
    for phase, latency in cell.latency.items():
        load = TIMED if phase == "rate" else "closed loop"
        figures |= {f"p{p} ms, {load}": _percentile(latency, p) for p in (50, 95, 99)}
    if cell.use:
        figures["memory MB"] = cell.use.memory or _once(cell.use.memory_mb)
        figures["CPU s/1,000"] = cell.use.cpu or _once(cell.use.cpu_s_per_1000)
    if yardstick := yardstick_of(cell):
        figures["yardstick ms"] = _once(yardstick)
    return figures


def _percentile(latency: Latency, p: int) -> Interval:
    found: Interval = getattr(latency, f"p{p}")
    return found if latency.n is None or enough(p, latency.n) else _once(found.value)


def _once(value: float) -> Interval:
    return Interval(value, nan, nan)


def table(differences: list[Difference]) -> Table:
    """All differences as text."""
    header = ["Cell", "Figure", "Before", "After", "After / before (95 %)", "Verdict"]
    rows = [[d.name, d.figure, _text(d.before), _text(d.after), _text(d.ratio), d.verdict] for d in differences]
    note = (
        "Intervals hold the noise within each run, not that between days or machines: repeat a run to see that. "
        f"Under {LEAST:.0%} is no difference, but for requests that failed. "
        "No interval: read once, or of too few answers (a p99 needs 381). "
        "Yardstick: CPU time of the same work beside both, so how much of a difference is the machine's."
    )
    return Table("Two runs", header, rows, note)


def _text(value: Interval) -> str:
    if isnan(value.low) or value.low == value.high:
        return f"{value.value:.4g}"
    return f"{value.value:.4g} ({value.low:.4g} to {value.high:.4g})"
