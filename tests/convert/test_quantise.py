"""Which tensors stay float: the measured effect of rounding each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import quantise
from convert.optimise import Folded
from convert.progress import Progress
from convert.quantise import Candidate, Effect, Search, measure, rounded_alone
from convert.ranges import Range
from convert.verify import Gate, Score
from convert.walk import Quantisation, Recipe
from service.image import Contract
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


# ---- the search, with agreements given for none, one and more tensors kept float; the gate is 97 %, safe is 97.5 %


class Stubbed(Search):
    """A search whose candidates have given agreements, and a mean difference that falls with them."""

    agreements: tuple[float, ...] = ()
    attempts: int = 0

    def attempt(self, recipe: Recipe) -> Candidate:
        self.attempts += 1
        agreement = self.agreements[len(recipe.keep_float)]
        score = Score(100, agreement, 0.1, (100 - agreement) / 100, None, None)
        return Candidate(Path(f"{len(recipe.keep_float)}"), recipe, Quantisation(), score, 1.0)


def searched(monkeypatch: pytest.MonkeyPatch, *agreements: float) -> tuple[Candidate, list[Effect], int]:
    """The choice, the effects (of r0 the largest), and how often they were measured."""
    found = [Effect(f"r{k}", 1 / (k + 2), 0.0) for k in range(len(agreements) - 1)] or [Effect("r0", 1.0, 0.0)]
    measured = list[int]()

    def stub(*_: object) -> list[Effect]:
        measured.append(1)
        return found

    monkeypatch.setattr(quantise, "measure", stub)
    folded, reference = Folded(quantised(Recipe())[0], ENTRY), np.zeros((0, 5), np.float32)
    search = Stubbed(folded, [], [], reference, Contract(12, 12), Gate(), Path(), Progress(quiet=True))
    search.agreements = agreements
    chosen, effects = search.run(7)
    assert effects in ([], found)
    assert chosen.recipe.weight_bits == 7
    assert search.attempts <= 1 + (len(agreements) - 1).bit_length()  # all int8, and halving: each takes minutes
    return chosen, effects, len(measured)


def test_a_safe_first_candidate_is_taken_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, effects, measured = searched(monkeypatch, 97.6)
    assert (chosen.recipe.keep_float, effects, measured) == (frozenset(), [], 0)


@pytest.mark.parametrize(
    ("agreements", "kept"),
    [
        ((97.2, 97.6), {"r0"}),
        ((96.0, 97.6, 97.7, 97.8), {"r0"}),  # half of them are enough, and half of that
        ((96.0, 97.2, 97.6, 97.8), {"r0", "r1"}),
        ((96.0, 97.0, 97.1, 97.2, 97.3, 97.4, 97.4, 97.6), {f"r{k}" for k in range(7)}),
        ((96.0, 97.2, 97.6), {"r0", "r1"}),
        ((97.2, 97.4, 97.3), set()),  # none is safe: the first inside the gate, which has the fewest tensors float
        ((96.0, 97.1, 97.4), {"r0"}),
        ((90.0, 96.0, 95.0), {"r0"}),  # none is inside: the nearest to float
        ((96.0, 95.0, 94.0), set()),
    ],
)
def test_the_search_takes_the_fewest_float_that_are_safe_else_the_fewest_inside_else_the_nearest(
    agreements: tuple[float, ...], kept: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, effects, measured = searched(monkeypatch, *agreements)
    assert (chosen.recipe.keep_float, len(effects), measured) == (frozenset(kept), len(agreements) - 1, 1)
