"""When a measurement may not be used, and why: each reason names its figure and its limit."""

from typing import Any

from perf.samples import Sample, Second

GENERATOR_LIMIT = 0.85  # of a core, a generator process: above it, latency is the generator's own
STEAL_LIMIT = 0.05  # of the machine's CPU time
OTHER_LIMIT = 0.30  # the same, by programs that are neither the stack nor the generator
ERROR_LIMIT = 0.01  # of the requests
SPEED_LIMIT = 0.75  # of the machine's, in the run's fastest closed loop


def reasons(
    run: dict[str, Any], facts: dict[str, Any], sent: dict[str, list[Sample]], seconds: dict[str, list[Second]]
) -> list[str]:
    """Why the cell is invalid, one sentence a reason; empty when it is valid."""
    found = [facts["reason"]] if facts.get("reason") else []
    options, cores = run["options"], run["machine"]["cores"]
    found += _limits(facts, options)
    processes = min(options["threads"], options["users"], cores)
    for phase, name in (("closed", "closed loop"), ("rate", "constant rate"), ("varying", "varying load")):
        if not sent.get(phase):
            continue
        if phase != "varying":  # no figure of it is compared: what was asked of it must have been answered
            found += _generator(name, generator_cores(sent[phase], seconds[phase]), processes)
            found += _steal(name, seconds[phase], cores)
            found += _others(name, seconds[phase], cores)
        found += _errors(name, sent[phase])
        found += _replicas(name, seconds[phase], options["replicas"] if facts["stack"] == "balanced" else 1)
    return found


def slowed(speed: float) -> list[str]:
    """Why a cell is invalid that had so much of the speed the machine had in another."""
    limit = f"of its speed in this run's fastest cell (limit {SPEED_LIMIT:.0%})"
    return [f"closed loop: the machine ran at {speed:.0%} {limit}"] if speed < SPEED_LIMIT else []


def _limits(facts: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """The plain recipe is a local process, whose limit may be looser than that of the containers beside it."""
    loose = facts["stack"] == "plain" and options["engine"] == "docker" and "whole cores" in facts.get("limited_by", "")
    if not loose or float(options["cpus"]).is_integer():
        return []
    return [f"held to whole cores, where other stacks have {options['cpus']:g}: run as root, or with --cpus 1"]


def generator_cores(samples: list[Sample], seconds: list[Second]) -> float:
    """Cores the load generator used between its first and its last send."""
    first, last = min(s.at_s for s in samples), max(s.at_s for s in samples)
    inside = [s for s in seconds if first <= s.at_s <= last]
    if len(inside) < 2:
        return 0.0
    return (inside[-1].generator_cpu_s - inside[0].generator_cpu_s) / (inside[-1].at_s - inside[0].at_s)


def _generator(name: str, used: float, processes: int) -> list[str]:
    limit = GENERATOR_LIMIT * processes
    return [f"{name}: the load generator was saturated ({used:.2f} cores, limit {limit:.2f})"] if used > limit else []


def _steal(name: str, seconds: list[Second], cores: int) -> list[str]:
    if len(seconds) < 2:
        return []
    share = (seconds[-1].steal_s - seconds[0].steal_s) / (seconds[-1].at_s - seconds[0].at_s) / cores
    limit = f"limit {STEAL_LIMIT:.0%}"
    return [f"{name}: the host took {share:.0%} of the CPU time ({limit})"] if share > STEAL_LIMIT else []


def _others(name: str, seconds: list[Second], cores: int) -> list[str]:
    share = other_share(seconds, cores) if len(seconds) > 1 else 0.0
    limit = f"limit {OTHER_LIMIT:.0%}"
    return [f"{name}: other programs took {share:.0%} of the CPU time ({limit})"] if share > OTHER_LIMIT else []


def _errors(name: str, samples: list[Sample]) -> list[str]:
    failed = [s for s in samples if s.status // 100 != 2]
    share = len(failed) / len(samples)
    if share <= ERROR_LIMIT:
        return []
    kinds = ", ".join(_kind(status) for status in sorted({s.status for s in failed}))
    return [f"{name}: {share:.1%} of the requests failed ({kinds}; limit {ERROR_LIMIT:.0%})"]


def _kind(status: int) -> str:
    return f"status {status}" if status else "no answer"


def _replicas(name: str, seconds: list[Second], least: int) -> list[str]:
    fewest = min((s.replicas for s in seconds), default=least)
    return [f"{name}: only {fewest} of {least} replicas were ready for a time"] if fewest < least else []


def other_share(seconds: list[Second], cores: int) -> float:
    """Part of the machine's CPU time that neither the stack nor the generator used."""
    first, last = seconds[0], seconds[-1]
    ours = last.cpu_s + last.generator_cpu_s - first.cpu_s - first.generator_cpu_s
    return max(0.0, last.busy_s - first.busy_s - ours) / (last.at_s - first.at_s) / cores
