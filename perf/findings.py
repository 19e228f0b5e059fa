"""What the report says in words, each sentence from the run's figures."""

from math import inf, isfinite
from typing import Any

from perf import plan, tables
from perf.candidates import Candidate
from perf.recommend import Recommendation
from perf.summary import Cell, cost_ratio
from perf.tables import Table, found

MOST_NAMED = 8  # photos
CAPTIONS = {
    "rates": (
        "Users (-c, 10 by default) that send their next photo when the last is answered. "
        "Pale bars: the plain recipe; line: 95 % interval"
    ),
    "models": (
        "The plain recipe, one replica of ours, and the study's figures (its response times: 10 users / its rate). "
        "Up and left is better for memory and response, up and right for the rate"
    ),
    "deployments": "The same for every deployment measured",
    "latency": (
        "Timed from the intended send, so that a stall counts for every request it delays; "
        "each nine of the tail has the same room"
    ),
    "scaling": (
        "The study's varying load (low, medium, high, low) compressed in time; "
        "the replicas follow by the Kubernetes rule, its windows compressed as well"
    ),
    "pareto": (
        "Named: nothing measured is at least as good in accuracy (within half a point), rate, p99, memory and cost "
        "(within 5 %) and better in one. Pale: dominated"
    ),
}


def when_and_where(run: dict[str, Any]) -> str:
    """One line: when, on what, how."""
    machine, options = run["machine"], run["options"]
    parts = [
        f"{run['started'][:16].replace('T', ' ')} UTC",
        f"{machine['cpu']}, {machine['cores']} cores",
        f"{len(run['cells'])} deployments",
        f"load by {options['tool']}, {options['users']} users",
        f"commit {machine['commit'] or 'unknown'}",
    ]
    return " · ".join(parts)


def headline(cells: list[Cell]) -> list[str]:
    """How much faster ours is than the plain recipe, and in how much memory."""
    lines = []
    for model in dict.fromkeys(c.model for c in cells):
        ours, plain = found(cells, "single", model), found(cells, "plain", model)
        if ours and plain and ours.columns and plain.columns and ours.use and plain.use:
            times, part = ours.columns.rate / plain.columns.rate, ours.use.memory_mb / plain.use.memory_mb
            lines.append(
                f"{model}: {ours.columns.rate:.0f} answers a second on one replica, {times:.1f} times "
                f"the plain recipe's {plain.columns.rate:.1f}, in {part:.0%} of its memory."
            )
    return lines


def warnings(cells: list[Cell]) -> list[str]:
    """What was measured but may not be used."""
    return [
        f"{c.model} on {c.stack} is left out of the recommendation: {'; '.join(c.reasons)}" for c in cells if c.reasons
    ]


def constraints(chosen: Recommendation) -> str:
    """The limits given, and what is left."""
    limits = chosen.constraints
    given = [
        (limits.min_accuracy > 0, f"accuracy at least {limits.min_accuracy:g}"),
        (limits.max_p99_ms < inf, f"p99 at most {limits.max_p99_ms:g} ms"),
        (limits.max_memory_mb < inf, f"memory at most {limits.max_memory_mb:g} MB"),
        (limits.min_rate > 0, f"at least {limits.min_rate:g} answers a second"),
    ]
    options = "--min-accuracy, --max-p99-ms, --max-memory-mb, --min-rate set them"
    named = ", ".join(text for is_given, text in given if is_given) or f"none given ({options})"
    text = (
        f"Constraints: {named}. Cost: a core-hour at {limits.core_hour_price:g}, for the cores that each deployment "
        "reserves (or uses, where nothing holds it to them), at full load."
    )
    if chosen.choices:
        return text
    if chosen.unknown and not chosen.refused:
        return f"{text} None can be chosen: {chosen.unknown[0][0]}: {chosen.unknown[0][1]}."
    if chosen.refused:
        closest = f": {chosen.closest}" if chosen.closest else ""
        return f"{text} No deployment meets them{closest}. What a rate needs: python -m perf plan."
    return f"{text} There is no valid measurement to choose from."


def figures(c: Candidate) -> list[tuple[str, str]]:
    """A choice's own figures."""
    return [
        ("Top-1", f"{100 * c.accuracy:.1f} %"),
        ("Rate", f"{c.rate:.0f}/s" if c.rate >= 20 else f"{c.rate:.1f}/s"),
        ("p99", f"{c.p99_ms:.0f} ms" if isfinite(c.p99_ms) else "no limit"),
        ("Memory", f"{c.memory_mb:.0f} MB"),
        ("Cost of a million", f"{c.cost:.2f}"),
    ]


def needs(
    run: dict[str, Any],
    cells: list[Cell],
    *,
    rate: float,
    max_p99_ms: float,
    price: float,
    mix: dict[str, float] | None = None,
    cpus: float | None = None,
) -> Table:
    """What a rate needs of each model that has a measured single stack, and of the plain recipe beside it."""
    asked = {"rate": rate, "max_p99_ms": max_p99_ms, "cpus": cpus or run["options"]["cpus"], "price": price}
    rows = []
    for cell in (c for c in cells if c.stack in ("single", "plain") and not c.reasons):
        if one := plan.service(cell, run["options"]["cpus"]):
            name = cell.model if cell.stack == "single" else f"{cell.model}, plain"
            balanced = found(cells, "balanced", cell.model) if cell.stack == "single" else None
            beside = max(1.0, cost_ratio(balanced, cell, "closed")) if balanced else 1.0
            rows.append((name, plan.need(name, one, mix=mix, beside=beside, **asked)))
    return tables.needs(rate, max_p99_ms, price, sorted(rows, key=lambda row: row[0].endswith(", plain")))


def method(run: dict[str, Any]) -> list[str]:
    """How the figures came about."""
    options, seconds = run["options"], run["options"]["seconds"]
    rate = f"{options['rate']:g} requests a second" if options["rate"] else "60 % of the closed loop's rate"
    held = ", ".join(sorted({cell["limited_by"] for cell in run["cells"] if cell.get("limited_by")})) or "not known"
    return [
        f"Each cell: bring the stack up and wait until it is ready, {seconds['warm']:g} s of warm-up (discarded), "
        f"{seconds['idle']:g} s of one connection, {seconds['closed']:g} s closed loop with {options['users']} users, "
        f"{seconds['rate']:g} s at {rate} timed from the intended send; a scaled stack also 4 x {seconds['level']:g} s "
        "of varying load; take it down. Resources are read from cgroups or /proc once a second (at the constant rate "
        "six times: reading disturbs), and the same little work is timed each time: a machine that shares its host "
        "drifts, and what is compared runs minutes apart.",
        f"Photos, in turn: {_few(run['photos'])}. Engine: {options['engine']}; limits of a replica: "
        f"{options['cpus']:g} cores, {options['memory_mb']} MB (plain: the same cores, the memory it needs); "
        f"balanced has {options['replicas']} replicas, scaled 1 to {options['max_replicas']}. Held to them by: {held}.",
        "Answered means 2xx. Intervals are 95 %, by redrawing 20 equal parts of the load's time: they hold the noise "
        "within this run, not that between machines or days. The load generator shares the machine. A cell is invalid "
        "when the generator is saturated, the host or other programs take the CPU away, the machine runs at under 75 % "
        "of its speed in the fastest cell, over 1 % of requests fail, or a replica (of `scaled`: every one) is "
        "not ready for a time.",
    ]


def machine(run: dict[str, Any]) -> Table:
    """The machine and the versions measured."""
    facts = run["machine"]
    rows = [
        ["CPU", f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['flags']) or 'no vector flags'}"],
        ["Memory", f"{facts['memory_mb']:,} MB"],
        ["System", f"{facts['system']}, Python {facts['python']}"],
        ["Versions", _named(facts["versions"])],
    ]
    if images := run.get("images"):
        rows[-1][0] = "Versions, plain recipe and generator"
        rows.append(["Versions, containers", _named(images)])
    return Table("Machine", ["", ""], rows)


def _few(names: list[str]) -> str:
    """All names, or the first and how many more."""
    more = [f"{len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return ", ".join([*names[:MOST_NAMED], *more])


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def notes(cells: list[Cell]) -> list[str]:
    """What a reader should know of single cells."""
    return [f"{c.model} on {c.stack}: {'; '.join(c.notes)}." for c in cells if c.notes]
