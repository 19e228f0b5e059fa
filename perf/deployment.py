"""What a stack under test is: its kind, its model, and the figures of its replicas."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["plain", "single", "balanced", "scaled"]
Engine = Literal["docker", "local"]

# 2 cores: MAX_REPLICAS x CPUS = 1.5, nginx 0.2, scaler 0.2, load generator 0.1. The same figures as .env: tested.
CPUS = 0.5
MEMORY_MB = 640
REPLICAS = 2
MAX_REPLICAS = 3
BALANCER_CPUS = 0.2
BALANCER_MEMORY_MB = 512
SCALER_CPUS = 0.2
PLAIN_MEMORY_MB = 2048  # `model.predict` takes about 1 GB: it is measured, not ended
READY_S = 120.0  # from a start until it is given up
FORGET_S = 1.0  # nginx's old worker takes requests until it has read its new configuration
FASTER = 30.0  # a scale-down window of 300 s becomes 10 s, for a load compressed in time


def keras_file(folder: Path, model: str) -> Path | None:
    """The Keras file of a model in a folder of them."""
    named = [folder / f"{model}{ending}" for ending in (".keras", ".h5")]
    return next((path for path in named if path.exists()), None)


class StackError(RuntimeError):
    """A stack that did not come up or did not move, and why."""


@dataclass(frozen=True)
class Deployment:
    """One stack to bring up.

    Args:
        kind: `plain` is always local; `single` is on port 8000, `balanced` and `scaled` are nginx's on 8080.
        model: the only model served; empty serves all of `models_dir`.
        models_dir: packages (NAME/VERSION/); for `plain` a folder of Keras files.
        replicas: of `balanced`.
        cpus: limit of each replica, in cores.
        memory_mb: limit of each replica; `plain` has at least PLAIN_MEMORY_MB.
        max_replicas: of `scaled`, which begins with 1.
        faster: divides every window and period of the scaled stack's rule.
    """

    kind: Kind
    model: str
    models_dir: Path
    replicas: int = REPLICAS
    cpus: float = CPUS
    memory_mb: int = MEMORY_MB
    max_replicas: int = MAX_REPLICAS
    faster: float = FASTER

    @property
    def port(self) -> int:
        """Where the stack listens; SINGLE_PORT and BALANCER_PORT of the environment move it, as they do for compose."""
        ports = {"plain": "8100", "single": os.environ.get("SINGLE_PORT", "8000")}
        return int(ports.get(self.kind) or os.environ.get("BALANCER_PORT", "8080"))

    @property
    def metric(self) -> str:
        """What the scaled stack follows, by the environment, as compose does."""
        return os.environ.get("SCALE_ON", "cpu")

    @property
    def first_replicas(self) -> int:
        """Replicas that the stack begins with."""
        return self.replicas if self.kind == "balanced" else 1


def beside_cpus(kind: str) -> float:
    """Cores that a stack reserves beside its replicas: those of the balancer and of the scaler."""
    return {"balanced": BALANCER_CPUS, "scaled": BALANCER_CPUS + SCALER_CPUS}.get(kind, 0.0)
