"""The search: everything in int8, and if that is not safely inside the gate on the tuning photos, tensors kept float
where it pays most."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from convert import qdq, verify
from convert.graph import PASSING, constants, pointwise, steps
from convert.optimise import Folded
from convert.photos import Photo
from convert.progress import Progress
from convert.verify import Gate, Score
from convert.walk import Quantisation, Recipe, walk
from service.image import Contract

SAFETY = 0.5  # points of agreement above the gate: the tuning photos are a sample too
CANDIDATES = 64  # tensors whose effect on the answers is measured, those with the most noise of their own
PROBES = 120  # photos a measurement
LEAST_GAIN = 0.02  # of mean |dp|: a tensor that brings less does not pay
MOST_FLOAT = 8  # tensors that may stay float
MOST_FLOAT_MACS = 0.18  # share of the multiplications that may stay in float


@dataclass(frozen=True)
class Candidate:
    """A quantised model on disk, how it was made, and its score on the tuning photos."""

    path: Path
    recipe: Recipe
    quantisation: Quantisation
    score: Score


@dataclass(frozen=True)
class Effect:
    """What leaving one tensor in float does: share of mean |dp| it takes away, share of multiplications it costs."""

    tensor: str
    gain: float
    macs: float


@dataclass
class Search:
    """All that the search works on. `reference` are the float model's answers to the tuning photos."""

    folded: Folded
    pixels: Sequence[NDArray[np.uint8]]
    tuning: Sequence[Photo]
    reference: verify.Probabilities
    contract: Contract
    gate: Gate
    folder: Path
    progress: Progress

    def run(self, weight_bits: int) -> tuple[Candidate, list[Effect]]:
        """All int8 where that is safely inside the gate, else the candidate nearest to float; and measured effects."""
        whole = self.attempt(Recipe(weight_bits=weight_bits))
        if self.safe(whole):
            return whole, []
        effects, macs = self.effects(whole), whole.quantisation.macs
        worthy = [effect for effect in effects if effect.gain >= LEAST_GAIN]
        kept = affordable(worthy, lambda names: share_of_macs(self.folded.model, macs, names))
        tried = [whole, self.attempt(replace(whole.recipe, keep_float=kept))] if kept else [whole]
        return min(tried, key=lambda one: one.score.mean_dp), effects

    def safe(self, candidate: Candidate) -> bool:
        """Whether it would pass a gate that is a little stricter."""
        return not replace(self.gate, agreement=min(self.gate.agreement + SAFETY, 100)).missed(candidate.score)

    def attempt(self, recipe: Recipe) -> Candidate:
        """Quantise by a recipe and score it."""
        model = self.folded.model
        kept = f"{len(recipe.keep_float)} tensors float" if recipe.keep_float else "all int8"
        with self.progress.stage(f"quantise ({kept})", len(steps(model))) as tick:
            quantisation = walk(model, self.pixels, self.folded.entry, recipe, tick)
        path = self.save(qdq.write(model, quantisation))
        with self.progress.stage("score on tuning photos", -(-len(self.tuning) // 8)) as tick:
            (found,) = verify.answers([path], self.tuning, self.contract, tick)
        score = verify.score(self.reference, found, self.tuning)
        self.progress.note(
            f"{kept}: agreement {score.agreement:.2f} %, top-1 drop {score.drop:.2f} points,"
            f" mean |dp| {score.mean_dp:.5f}"
        )
        return Candidate(path, recipe, quantisation, score)

    def save(self, model: ModelProto) -> Path:
        """Write a model under a new name."""
        path = self.folder / f"candidate-{len(list(self.folder.glob('candidate-*')))}.onnx"
        onnx.save(model, path)
        return path

    def effects(self, base: Candidate) -> list[Effect]:
        """The measured effect of each noisy tensor on the answers, largest gain first."""
        photos = self.tuning[:PROBES]
        reference = self.reference[: len(photos)]
        names = probed(self.folded.model, base.quantisation)
        found = []

        def error(quantisation: Quantisation, tick: Callable[[], None]) -> float:
            path = self.save(qdq.write(self.folded.model, quantisation))
            (answers,) = verify.answers([path], photos, self.contract, tick)
            return float(np.abs(answers - reference).mean())

        with self.progress.stage("measure sensitivity", (len(names) + 1) * -(-len(photos) // 8)) as tick:
            before = error(base.quantisation, tick)
            for name in names:
                gain = 1 - error(without(self.folded.model, base.quantisation, name), tick) / max(before, 1e-12)
                found.append(Effect(name, gain, share_of_macs(self.folded.model, base.quantisation.macs, {name})))
        return sorted(found, key=lambda effect: -effect.gain)


def probed(model: ModelProto, quantisation: Quantisation) -> list[str]:
    """The tensors that could stay float, those with the most rounding noise first."""
    passed = {name for step in steps(model) if step.op in PASSING for name in (*step.inputs, *step.outputs)}
    noise = {name: share for name, share in quantisation.noise.items() if name not in passed}
    return sorted(noise, key=lambda name: -noise[name])[:CANDIDATES]


def moved(model: ModelProto, names: Set[str]) -> set[str]:
    """The steps that compute in float when these tensors stay float: all readers, and writers that give u8 only."""
    values = constants(model)
    return {
        step.name
        for step in steps(model)
        if not names.isdisjoint(step.inputs) or not (names.isdisjoint(step.outputs) or pointwise(step.nodes[0], values))
    }


def without(model: ModelProto, quantisation: Quantisation, name: str) -> Quantisation:
    """The same quantisation with one tensor, and the weights of what then computes in float, as they were."""
    ranges = {key: value for key, value in quantisation.ranges.items() if key != name}
    gone = moved(model, {name})
    weights = {key: value for key, value in quantisation.weights.items() if key not in gone}
    return replace(quantisation, ranges=ranges, weights=weights)


def share_of_macs(model: ModelProto, macs: Mapping[str, int], names: Set[str]) -> float:
    """Share of all multiplications that move to float kernels when these tensors stay float."""
    return sum(macs.get(step, 0) for step in moved(model, names)) / max(sum(macs.values()), 1)


def affordable(effects: Sequence[Effect], share: Callable[[Set[str]], float]) -> frozenset[str]:
    """The best tensors to keep float, as long as their multiplications (`share`) stay few."""
    kept = set[str]()
    for effect in effects:
        if len(kept) < MOST_FLOAT and share({*kept, effect.tensor}) <= MOST_FLOAT_MACS:
            kept.add(effect.tensor)
    return frozenset(kept)
