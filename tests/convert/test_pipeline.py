"""Verdicts and what a refusal advises."""

from pathlib import Path

import numpy as np
import pytest

from convert.errors import GateRefusedError
from convert.graph import Array
from convert.pipeline import Options, advice, check_portable, judge
from convert.quantise import Effect, affordable, growing
from convert.source import PREDICTED, Source
from convert.timing import Timed
from tests.convert.graphs import normal


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


def test_the_source_answers_a_few_images_at_a_time() -> None:
    sizes = list[int]()

    def call(images: Array) -> Array:
        sizes.append(len(images))
        return images.mean((1, 2))

    images = normal(2 * PREDICTED + 1, 5, 5, 3)
    source = Source(Path("x.keras"), "keras", "", 5, 5, 3, call, None)
    assert np.array_equal(source.predict(images), images.mean((1, 2)))
    assert sizes == [PREDICTED, PREDICTED, 1]  # Keras keeps every layer's output of a call


def test_advice_names_options_that_exist_and_help() -> None:
    options = Options(Path("x"), "x", Path("images"), calibration=128)
    assert "--calibration, now 128" in advice(options)
    assert "--weight-bits 8" in advice(options)
    assert "--weight-bits 7" in advice(Options(Path("x"), "x", Path("images"), weight_bits=8))


def test_answers_that_depend_on_the_cpu_are_refused() -> None:
    found = {"agreement": 90.0, "photos": 64, "other_cpu": "Haswell"}
    with pytest.raises(GateRefusedError, match=r"only 90.0 % of 64 answers are the same on Haswell, limit 99 %"):
        check_portable(found, 7)
    check_portable(found, 8)
    check_portable({**found, "agreement": 98.4}, 7)  # one of 64: no proof
    check_portable({"skipped": "no emulator"}, 7)


def test_tensors_are_kept_float_as_long_as_they_are_cheap() -> None:
    effects = [Effect(name, 0.5, 0.0) for name in ("a", "costly", "b", "c", "d")]
    cost = {"a": 0.05, "costly": 0.2, "b": 0.03, "c": 0.01, "d": 0.001}
    assert affordable(effects, lambda names: sum(cost[name] for name in names)) == list("abcd")
    assert affordable([], lambda _: 0.0) == []
    assert len(affordable([Effect(str(number), 0.5, 0.0) for number in range(20)], lambda _: 0.0)) == 8


@pytest.mark.parametrize(
    ("names", "tried"), [("", []), ("a", ["a"]), ("ab", ["a", "ab"]), ("abcde", ["a", "ab", "abcd", "abcde"])]
)
def test_few_tensors_are_tried_in_float_before_many(names: str, tried: list[str]) -> None:
    assert growing(names) == tried
