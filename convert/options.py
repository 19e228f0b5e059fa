"""What the command line says."""

from dataclasses import dataclass, field
from pathlib import Path

from convert.verify import Gate

RANGES = {"0,1": (0.0, 1.0), "-1,1": (-1.0, 1.0), "0,255": (0.0, 255.0)}


@dataclass(frozen=True)
class Options:
    """Of one conversion."""

    source: Path
    name: str
    images: Path
    labels: Path | None = None
    version: int = 1
    input_range: str = "0,1"
    resize: str = "bicubic"
    crop: str = "none"
    weight_bits: int = 7
    macs: float = 100.0
    calibration: int = 512
    gate: Gate = field(default_factory=Gate)
    trust_source: bool = False
    replace: bool = False
    models: Path = Path("models")
