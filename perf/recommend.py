"""Which model on which stack: constraints first, then a choice a priority, with reasons and what would change it."""

from dataclasses import dataclass, field, replace
from math import inf

from perf.candidates import LIMITS, Candidate, Constraints, candidate, dominator, front, lacking, refusal
from perf.choices import Choice, choices
from perf.summary import Cell


@dataclass(frozen=True)
class Recommendation:
    """The four choices, and why everything else was left out."""

    constraints: Constraints
    choices: list[Choice] = field(default_factory=list)
    front: list[Candidate] = field(default_factory=list)  # Pareto: nothing is as good in everything and better in one
    dominated: list[tuple[Candidate, Candidate]] = field(default_factory=list)  # (candidate, one that dominates it)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): constraints
    unknown: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): a figure that a choice needs
    invalid: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): measurement
    closest: str = ""  # where nothing meets the constraints: what would with which


def recommend(cells: list[Cell], constraints: Constraints, cpus: float) -> Recommendation:
    """Choose among the valid cells.

    Args:
        cpus: CPU limit of one replica, cores; what a replica costs whether it works or waits.
    """
    valid = [c for c in cells if not c.reasons]
    candidates = [candidate(c, cpus, constraints.core_hour_price) for c in valid if not lacking(c)]
    open_ = [c for c in candidates if not refusal(c, constraints)]
    choices, best = _choose(candidates, constraints), front(open_)
    chosen = {choice.candidate for choice in choices}
    return Recommendation(
        constraints=constraints,
        choices=[_loosened(choice, candidates, constraints) for choice in choices],
        front=best,
        dominated=[(c, by) for c in open_ if c not in chosen and (by := dominator(c, best))],
        refused=[(c.name, why) for c in candidates if (why := refusal(c, constraints))],
        unknown=[(f"{c.model} on {c.stack}", why) for c in valid if (why := lacking(c))],
        invalid=[(f"{c.model} on {c.stack}", "; ".join(c.reasons)) for c in cells if c.reasons],
        closest="" if open_ else _closest(candidates, constraints),
    )


def _choose(candidates: list[Candidate], limits: Constraints) -> list[Choice]:
    """A choice a priority among those that meet the limits; none where nothing does."""
    open_ = [c for c in candidates if not refusal(c, limits)]
    return list(choices(open_)) if open_ else []


def _loosened(choice: Choice, candidates: list[Candidate], limits: Constraints) -> Choice:
    """The choice, with what would win instead if one of the given limits were looser, or else all: with the least that
    changes anything, and without any."""

    def winner(looser: dict[str, float]) -> Candidate:
        chosen = _choose(candidates, replace(limits, **looser))
        return next(c.candidate for c in chosen if c.priority == choice.priority)

    def instead(names: list[str]) -> list[str]:
        every = winner({name: LIMITS[name].loosest for name in names})
        able = sorted(_able(candidates, limits, names), key=lambda one: _distance(one[1], limits))
        first = next((c for c, least in able if least and winner(least) == c), every)
        return [
            f"{c.name} would win with {_options(least)}"
            for c in dict.fromkeys((first, every))
            if c != choice.candidate and winner(least := _needed(c, limits, names)) == c
        ]

    given = _given(limits)
    found = [text for name in given for text in instead([name])] or instead(given)
    return replace(choice, change=[*choice.change, *found])


def _closest(candidates: list[Candidate], limits: Constraints) -> str:
    """What misses the fewest limits, and the limits that it would meet."""
    found = _able(candidates, limits, _given(limits))
    if not found:
        return ""
    c, least = min(found, key=lambda one: (len(one[1]), _distance(one[1], limits), one[0].cost))
    return f"{c.name} would with {_options(least)}"


def _able(
    candidates: list[Candidate], limits: Constraints, names: list[str]
) -> list[tuple[Candidate, dict[str, float]]]:
    """Those that meet every limit with these as loose as they need them."""
    able = [(c, _needed(c, limits, names)) for c in candidates if c.p99_ms < inf]
    return [(c, least) for c, least in able if not refusal(c, replace(limits, **least))]


def _given(limits: Constraints) -> list[str]:
    return [name for name in LIMITS if getattr(limits, name) != getattr(Constraints(), name)]


def _needed(c: Candidate, limits: Constraints, names: list[str]) -> dict[str, float]:
    """Those of these limits that a candidate misses, as loose as it needs them."""
    loosest = {name: LIMITS[name].loosest for name in names}
    missed = [n for n in names if refusal(c, replace(limits, **{**loosest, n: getattr(limits, n)}))]
    return {name: LIMITS[name].needed(c, limits) for name in missed}


def _distance(least: dict[str, float], limits: Constraints) -> float:
    """Parts of the limits, to hundredths: below that the cost tells more."""
    parts = [abs(value / float(getattr(limits, name)) - 1) for name, value in least.items()]
    return round(sum(parts), 2)


def _options(least: dict[str, float]) -> str:
    return " and ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in least.items())
