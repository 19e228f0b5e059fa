"""The figures of the 2023 study that ours stand beside: the same three architectures on full-size Food-11, 10 users.
They are those of its tables, as the brief of this project gives them; the study itself is not published.

Its photos were full-size; ours are 64x64 enlarged to 224x224, so accuracies are not comparable, only shown.
"""

from collections.abc import Iterable
from typing import NamedTuple


class StudyModel(NamedTuple):
    """One model of the study, served by the plain recipe."""

    name: str  # as the study writes it
    accuracy: float
    memory_mb: float
    rate: float  # requests a second at 10 users
    availability: float | None  # percent of requests answered, where the study says


MODELS = {
    "previous": StudyModel("previous", 0.7622, 311.5, 15.77, None),
    "mobilenet_v2": StudyModel("MobileNetV2", 0.8378, 288.1, 15.61, None),
    "resnet101_v2": StudyModel("ResNet101V2", 0.8473, 404.9, 4.78, 8.58),
}


class StudyStack(NamedTuple):
    """One deployment of the study."""

    rate: float
    availability: float | None


# The study measured its deployments with one model each; it names the rates alone.
STACKS = {"balanced": StudyStack(18.27, None), "scaled": StudyStack(23.2, 100.0)}
_ACCURACY = (
    "Our accuracy is on 64x64 photos enlarged to the models' 224x224 input (no evaluation photos of another resolution "
    "are at hand), the study's is on full-size ones, by its own training: the two are not comparable and stand side by "
    "side only to be seen. What can be judged here is int8 against float, on the same photos."
)


def accuracy_caveat(models: Iterable[str]) -> str:
    """What our accuracies and the study's have to do with each other; nothing where none of its models is here."""
    return "" if MODELS.keys().isdisjoint(models) else _ACCURACY
