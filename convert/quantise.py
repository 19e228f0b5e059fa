"""The search: everything in int8, or as few tensors kept float as bring it safely inside the gate on the tuning photos,
those first whose rounding costs most."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from convert import qdq, verify
from convert.biases import absorb
from convert.graph import PASSING, constants, pointwise, session, steps
from convert.means import multiply
from convert.optimise import Folded
from convert.photos import Photo, batch_count, batches
from convert.progress import Progress
from convert.shifts import carry
from convert.verify import Gate, Score
from convert.walk import Quantisation, Recipe, effort, walk
from service.cpu import cores
from service.image import Contract

SAFETY = 0.5  # points of agreement above the gate: the tuning photos are a sample too
CANDIDATES = 64  # tensors whose effect on the answers is measured, those with the most noise of their own
PROBES = 120  # photos a measurement
LEAST_SHARE = 0.02  # of the error: a tensor that brings less does not pay
MOST_FLOAT = 8  # tensors that may stay float
MOST_FLOAT_MACS = 0.18  # share of the multiplications that may stay in float


@dataclass(frozen=True)
class Candidate:
    """A quantised model on disk, how it was made, its score on the tuning photos, and the share of the source's
    multiplications that it has."""

    path: Path
    recipe: Recipe
    quantisation: Quantisation
    score: Score
    macs: float


@dataclass(frozen=True)
class Effect:
    """What rounding one tensor does: its share of the squared error that all make one by one, and the share of
    multiplications that leaving it in float costs."""

    tensor: str
    share: float
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
        """All int8 if that is safely inside the gate, else the fewest tensors float found by halving that are, else the
        fewest inside it, else the candidate nearest to float; and the measured effects."""
        tried = [self.attempt(Recipe(weight_bits=weight_bits))]
        if self.safe(tried[0]):
            return tried[0], []
        model, base = self.folded.model, tried[0].quantisation
        pixels = list(batches(self.tuning[:PROBES], self.contract))
        with self.progress.stage("measure sensitivity", len(probed(model, base))) as tick:
            effects = measure(model, base, pixels, tick)
        worthy = [effect for effect in effects if effect.share >= LEAST_SHARE]
        names = affordable(worthy, lambda names: share_of_macs(model, base.macs, names))
        few, enough = 0, len(names) + 1
        while enough - few > 1:
            count = (few + enough) // 2
            tried.append(self.attempt(replace(tried[0].recipe, keep_float=frozenset(names[:count]))))
            few, enough = (few, count) if self.safe(tried[-1]) else (count, enough)
        tried.sort(key=lambda one: len(one.recipe.keep_float))
        fits = [one for one in tried if self.safe(one)] or [one for one in tried if not self.gate.missed(one.score)]
        return fits[0] if fits else min(tried, key=lambda one: one.score.mean_dp), effects

    def safe(self, candidate: Candidate) -> bool:
        """Whether it would pass a gate that is a little stricter."""
        return not replace(self.gate, agreement=min(self.gate.agreement + SAFETY, 100)).missed(candidate.score)

    def attempt(self, recipe: Recipe) -> Candidate:
        """Quantise by a recipe and score it."""
        model = self.folded.model
        count = len(recipe.keep_float)
        kept = f"{count} tensor{'s' * (count > 1)} float" if count else "all int8"
        entry = self.folded.entry
        with self.progress.stage(f"quantise ({kept})", effort(model, self.pixels[0][:1], entry)) as tick:
            quantisation = walk(model, self.pixels, entry, recipe, tick)
        path = self.save(absorb(multiply(carry(qdq.write(model, quantisation)))))
        with self.progress.stage("score on tuning photos", batch_count(self.tuning)) as tick:
            (found,) = verify.answers([path], self.tuning, self.contract, tick)
        score = verify.score(self.reference, found, self.tuning)
        self.progress.note(
            f"{kept}: agreement {score.agreement:.2f} %, top-1 drop {score.drop:.2f} points,"
            f" mean |dp| {score.mean_dp:.5f}"
        )
        return Candidate(path, recipe, quantisation, score, self.folded.macs)

    def save(self, model: ModelProto) -> Path:
        """Write a model under a new name."""
        path = self.folder / f"candidate-{len(list(self.folder.glob('candidate-*')))}.onnx"
        onnx.save(model, path)
        return path


def measure(
    model: ModelProto, quantisation: Quantisation, pixels: Sequence[NDArray[np.uint8]], tick: Callable[[], None]
) -> list[Effect]:
    """The effect of each noisy tensor on the answers to batches of pixels, largest first. (All but one rounded would
    not do: the weights behind are made for the errors of the tensors before them.)"""
    reference, errors = rounded_alone(model, quantisation, "", pixels), dict[str, float]()
    for name in probed(model, quantisation):
        difference = rounded_alone(model, quantisation, name, pixels) - reference
        errors[name] = float(np.square(difference, dtype=np.float64).sum())
        tick()
    total, macs = max(sum(errors.values()), 1e-12), quantisation.macs
    found = [Effect(name, error / total, share_of_macs(model, macs, {name})) for name, error in errors.items()]
    return sorted(found, key=lambda effect: -effect.share)


def rounded_alone(
    model: ModelProto, quantisation: Quantisation, name: str, pixels: Sequence[NDArray[np.uint8]]
) -> verify.Probabilities:
    """Answers of the float model with one tensor rounded, and nothing else but the pixels."""
    entry = model.graph.input[0].name
    ranges = {key: span for key, span in quantisation.ranges.items() if key in {entry, name}}
    engine = session(qdq.write(model, Quantisation(ranges=ranges)), cores())
    return np.concatenate([engine.run(None, {"image": batch})[0] for batch in pixels])


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


def share_of_macs(model: ModelProto, macs: Mapping[str, int], names: Set[str]) -> float:
    """Share of all multiplications that move to float kernels when these tensors stay float."""
    return sum(macs.get(step, 0) for step in moved(model, names)) / max(sum(macs.values()), 1)


def affordable(effects: Sequence[Effect], share: Callable[[Set[str]], float]) -> list[str]:
    """The best tensors to keep float, best first, as long as their multiplications (`share`) stay few."""
    kept = list[str]()
    for effect in effects:
        if len(kept) < MOST_FLOAT and share({*kept, effect.tensor}) <= MOST_FLOAT_MACS:
            kept.append(effect.tensor)
    return kept
