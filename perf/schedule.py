"""When the sends of a timed load are due."""

from collections.abc import Iterator, Sequence


def parse(text: str) -> list[tuple[float, float]]:
    """`50x20,100x10` as [(requests a second, seconds), ...]; raises ValueError."""
    steps = [step.partition("x") for step in text.split(",")]
    schedule = [(float(rate), float(seconds)) for rate, _, seconds in steps]
    if any(rate <= 0 or seconds <= 0 for rate, seconds in schedule):
        raise ValueError(f"schedule {text}: rates and seconds are above zero")
    return schedule


def intended_sends(schedule: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Evenly spaced sends of each step in turn, seconds after the start."""
    begin = 0.0
    for rate, seconds in schedule:
        yield from (begin + k / rate for k in range(round(rate * seconds)))
        begin += seconds
