"""Capacity beyond this machine: measured service times in a queueing simulation say what a rate needs and costs.

The demand of a model is the CPU time its `single` stack used a request; how it differs from photo to photo, and by how
much it varies, comes from the same stack's idle answers. What its answers at a constant rate took beyond the simulation
(the machine's own stalls) is added to every simulated answer by rank. The model is checked against every measured cell.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil, floor, nan
from typing import Any

import numpy as np

from perf.deployment import beside_cpus
from perf.queueing import Floats, Outcome, Replicas, closed_loop, open_loop, poisson, smallest
from perf.summary import CURVE, SPREAD, Cell, cost_ratio

REQUESTS = 20_000  # simulated for one answer
CHECKED = 5_000  # simulated to check one cell
WARM = 2_000  # of them left out at the start
MOST_BUSY = 0.8  # utilisation a plan goes to: what is left carries a burst or a lost replica
MOST_REPLICAS = 20_000
MOVED = 0.05  # mean replicas off a whole number: they came or went, which is not simulated
CLOSE = 0.15  # the model is trusted within this part of the measured figure


@dataclass(frozen=True)
class Service:
    """What one request of a model needs, from measurements."""

    demand_s: float  # CPU time, mean over the measured photos
    photos: dict[str, float]  # CPU time by photo
    spread: list[float]  # quantiles (SPREAD) of a request's time over its photo's mean
    idle_s: float  # answer time with nothing else running
    idle_demand_s: float  # CPU time of those answers: the machine may have been faster or slower than under load
    late_s: list[float]  # percentiles (CURVE) of answers at a constant rate, less the simulated ones
    cpus: float = 1.0  # CPU limit of the replica that was measured, cores

    @cached_property
    def fixed_s(self) -> float:
        """What an idle answer took beside its service; nothing where several threads work on one image."""
        rng = np.random.default_rng(0)
        apart = np.arange(CHECKED // 10) * 10 + rng.uniform(0, 1, CHECKED // 10)
        work = demands(self, len(apart), None, rng) * (self.idle_demand_s / self.demand_s)
        service_s = open_loop(apart, work, 0.0, replicas(1, self.cpus)).latency_s.mean()
        return max(0.0, self.idle_s - float(service_s))


@dataclass(frozen=True)
class Need:
    """What a rate needs of one model."""

    model: str
    replicas: int
    cores: float
    utilisation: float
    p50_ms: float
    p99_ms: float
    price_hour: float
    price_million: float


@dataclass(frozen=True)
class Check:
    """A measured figure beside the simulated one; `low` and `high` are the measured figure's 95 % interval."""

    name: str  # stack and model
    figure: str
    measured: float
    simulated: float
    low: float = nan
    high: float = nan
    cost: float = 1.0  # CPU time of an answer over that of the single stack, of whose service times plans are made
    filled: bool = False  # the measured answers waited for the machine, too: replicas and generator can fill its cores

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1

    @property
    def close(self) -> bool:
        return abs(self.error) <= CLOSE

    @property
    def within(self) -> bool:
        return self.close or self.low <= self.simulated <= self.high


def service(cell: Cell, cpus: float) -> Service | None:
    """The service times that a measured cell of one replica with a CPU limit shows; None where it has too little."""
    if not cell.use or not cell.idle or not cell.use.cpu_s_per_1000:
        return None
    demand = cell.use.cpu_s_per_1000 / 1000
    idle_s = {name: photo["mean_ms"] / 1000 for name, photo in cell.idle.items()}
    mean = float(np.mean(list(idle_s.values())))
    photos = {name: max(0.2 * demand, demand + seconds - mean) for name, seconds in idle_s.items()}
    spread = np.mean([photo["spread"] for photo in cell.idle.values()], axis=0).tolist()
    one = Service(demand, photos, spread, mean, cell.idle_cpu_s or demand, [0.0] * len(CURVE), cpus)
    if (timed := cell.latency.get("rate")) and timed.kept_up:
        made = _constant(one, cell, cell, replicas(1, cpus))
        beyond = np.array([ms for _, ms in timed.curve]) / 1000 - np.percentile(made, CURVE)
        one = replace(one, late_s=np.maximum(0, beyond).tolist())
    return one


def demands(one: Service, n: int, mix: dict[str, float] | None, rng: np.random.Generator) -> Floats:
    """CPU seconds of n requests: photos drawn by the mix, in turn without one, each with its spread."""
    names, which = list(one.photos), np.arange(n) % len(one.photos)
    if mix:
        shares = np.array([mix.get(name, 0.0) for name in names])
        which = rng.choice(len(names), n, p=shares / shares.sum())
    photo_s = np.array([one.photos[name] for name in names])[which]
    middle = np.array([0.0, *SPREAD, 100.0])
    values = np.array([one.spread[0], *one.spread, one.spread[-1]])
    values *= 100 / np.trapezoid(values, middle)  # what lies beyond the outer quantiles is work, too
    drawn: Floats = photo_s * np.interp(rng.uniform(0, 100, n), middle, values)
    return drawn


def replicas(number: int, cpus: float) -> Replicas:
    """Replicas with a CPU limit: the service runs one slot a whole core, and at least one."""
    return Replicas(number, max(1, floor(cpus)), quota=min(1.0, cpus))


def need(
    model: str,
    one: Service,
    *,
    rate: float,
    max_p99_ms: float,
    cpus: float,
    price: float,
    mix: dict[str, float] | None = None,
    beside: float = 1.0,
) -> Need | None:
    """The fewest replicas that answer `rate` within the limit, at most MOST_BUSY busy; None if no number does.

    Args:
        cpus: CPU limit of a replica, cores.
        price: of a core for an hour.
        beside: CPU time of an answer where there are several replicas and a balancer, over that of one alone.
    """
    rng = np.random.default_rng(0)
    arrivals, work = poisson(rate, REQUESTS, rng), demands(one, REQUESTS, mix, rng)
    if 1000 * (float(np.percentile(work, 99)) + one.fixed_s) > max_p99_ms:
        return None  # even at full speed and without any wait it takes longer

    def demand(number: int) -> Floats:
        return work * beside if number > 1 else work

    def busy(number: int) -> float:
        return rate * float(demand(number).mean()) / replicas(number, cpus).cores

    first = 1 if busy(1) <= MOST_BUSY else max(2, ceil(2 * busy(2) / MOST_BUSY))
    if first > MOST_REPLICAS:
        return None
    most = min(MOST_REPLICAS, first * 8 + 8)

    @cache
    def outcome(number: int) -> Outcome:
        made = open_loop(arrivals, demand(number), one.fixed_s, replicas(number, cpus))
        return made._replace(latency_s=_late(made.latency_s[WARM:], one))

    def enough(number: int) -> bool:
        return outcome(number).percentile_ms(99) <= max_p99_ms

    number = smallest(enough, first, most) if enough(most) else None
    if number is None:
        return None
    made = outcome(number)
    hour = number * cpus * price
    return Need(
        model,
        number,
        number * cpus,
        busy(number),
        made.percentile_ms(50),
        made.percentile_ms(99),
        hour,
        hour / (rate * 3600) * 1e6,
    )


def _constant(one: Service, cell: Cell, single: Cell, target: Replicas) -> Floats:
    """Simulated seconds of a cell's answers at its constant rate, with the service times of `single`."""
    work = demands(one, CHECKED, None, np.random.default_rng(0)) * cost_ratio(cell, single, "rate")
    arrivals = np.arange(CHECKED) / cell.latency["rate"].offered
    return _late(open_loop(arrivals, work, one.fixed_s, target).latency_s, one)


def _late(latency_s: Floats, one: Service) -> Floats:
    """Simulated answers, each as much later as the measured one of its rank was."""
    ranks = 100 * (latency_s.argsort().argsort() + 0.5) / len(latency_s)
    later: Floats = latency_s + np.interp(ranks, CURVE, one.late_s)
    return later


def check(run: dict[str, Any], cells: list[Cell]) -> list[Check]:
    """Every valid cell of ours against the simulation of its waits: the demands of its model's `single` stack,
    brought to the CPU time that an answer took in the cell itself. How far the two are apart is `Check.cost`."""
    valid, cpus = [c for c in cells if c.stack != "plain" and not c.reasons], run["options"]["cpus"]
    made = {c.model: (c, one) for c in valid if c.stack == "single" and (one := service(c, cpus))}
    return [check for cell in valid if cell.model in made for check in _check_cell(run, cell, *made[cell.model])]


def _check_cell(run: dict[str, Any], cell: Cell, single: Cell, one: Service) -> list[Check]:
    use, columns = cell.use, cell.columns
    if not use or not columns or abs(use.replicas - round(use.replicas)) > MOVED:
        return []
    name, cpus = f"{cell.stack} {cell.model}", run["options"]["cpus"]
    number = max(1, round(use.replicas))
    # on one machine the generator and other programs take their part of the cores
    left = run["machine"]["cores"] * (1 - use.other) - use.generator_cores
    target = replicas(number, cpus)
    target = target._replace(speed=min(1.0, left / target.cores))
    cost = cost_ratio(cell, single, "closed")
    work = demands(one, CHECKED, None, np.random.default_rng(0)) * cost
    closed = closed_loop(run["options"]["users"], work, one.fixed_s, target)
    response_ms = 1000 * float(closed.latency_s.mean())
    found = [
        Check(name, "closed loop, answers/s", columns.rate, closed.rate, cost=cost),
        Check(name, "closed loop, mean ms", 1000 * columns.response_s, response_ms, cost=cost),
    ]
    timed = cell.latency.get("rate")
    fits = replicas(number, cpus).cores + beside_cpus(cell.stack) <= left
    # of the single stack's answers at the constant rate the model is made
    if timed and timed.kept_up and cell is not single:
        made, p99 = 1000 * _constant(one, cell, single, target), timed.p99
        p99_ms, cost = float(np.percentile(made, 99)), cost_ratio(cell, single, "rate")
        found += [
            Check(name, "constant rate, mean ms", timed.mean, float(made.mean()), cost=cost, filled=not fits),
            Check(name, "constant rate, p99 ms", p99.value, p99_ms, p99.low, p99.high, cost, not fits),
        ]
    return found
