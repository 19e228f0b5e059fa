"""Which tensors stay float: the measured effect of rounding each."""

from dataclasses import replace

import numpy as np
import pytest

from convert.quantise import measure, rounded_alone
from convert.ranges import Range
from convert.walk import Recipe
from tests.convert.graphs import run
from tests.convert.test_walk import ENTRY, batches, quantised


def test_the_tensor_whose_rounding_changes_the_answers_most_comes_first() -> None:
    model, found, _ = quantised(Recipe())
    for hot in ("r0", "r1"):
        coarse = replace(found, ranges={**found.ranges, hot: Range(2.0, 0)})
        effects = measure(model, coarse, batches(), lambda: None)
        assert effects[0].tensor == hot
        assert effects[0].share > 0.9
        assert sum(effect.share for effect in effects) == pytest.approx(1)


def test_nothing_but_the_named_tensor_is_rounded() -> None:
    model, found, _ = quantised(Recipe())
    exact = run(model, ENTRY.dequantise(np.concatenate(batches())))[0]
    assert np.abs(rounded_alone(model, found, "", batches()) - exact).max() < 1e-5
    assert np.abs(rounded_alone(model, found, "r1", batches()) - exact).max() > 1e-4
