"""Verdicts and what a refusal advises."""

from pathlib import Path

import pytest

from convert.pipeline import Options, advice, judge
from convert.quantise import Effect, portions
from convert.timing import Timed


def timed(*rates: float) -> list[Timed]:
    """Float and int8."""
    return [Timed(2, 1, 1, rate, 1.0) for rate in rates]


@pytest.mark.parametrize(
    ("kept", "rates", "verdict", "reason"),
    [
        (0, (100, 210), "int8", "2.10 x the throughput of float inside the gate."),
        (1, (100, 210), "mixed", "with 1 tensor kept float where rounding cost most."),
        (2, (100, 210), "mixed", "with 2 tensors kept float"),
        (0, (100, 104), "keep float", "int8 has 1.04 x the throughput of float on this machine"),
        (1, (100, 90), "keep float", "0.90 x"),
    ],
)
def test_verdicts(kept: int, rates: tuple[float, float], verdict: str, reason: str) -> None:
    found = judge(kept, timed(*rates))
    assert found[0] == verdict
    assert reason in found[1]


def test_advice_names_options_that_exist_and_help() -> None:
    options = Options(Path("x"), "x", Path("images"), calibration=128)
    assert "--calibration, now 128" in advice(options)
    assert "--weight-bits 8" in advice(options)
    assert "--weight-bits 8" not in advice(Options(Path("x"), "x", Path("images"), weight_bits=8))


def test_tensors_are_kept_float_as_long_as_they_are_cheap() -> None:
    effects = [Effect("a", 0.5, 0.05), Effect("costly", 0.4, 0.2), Effect("b", 0.3, 0.03), Effect("c", 0.2, 0.01)]
    assert portions(effects) == [frozenset("a"), frozenset("ab")]
    assert portions([]) == []
