"""The photos that are sent, as ready multipart bodies: making them costs the generator nothing under load."""

import os
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[1]
BOUNDARY = "sous-perf-0f6a7c21"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


class Photo(NamedTuple):
    """A photo and the request body that uploads it as the form's `file`."""

    name: str
    body: bytes


def shared() -> Path:
    """What is measured with where nothing else is named: `$PERF_SHARED`, or the folder `shared` beside the checkout."""
    return Path(os.environ.get("PERF_SHARED") or CHECKOUT.parent / "shared")


def default_folder() -> Path:
    """Photos to send: `data/photos` of the shared folder."""
    return shared() / "data" / "photos"


def default_sources() -> Path:
    """The Keras files: `source-models` of the checkout, or `models` of the shared folder."""
    own = CHECKOUT / "source-models"
    return own if own.is_dir() else shared() / "models"


def load(folder: Path) -> list[Photo]:
    """The folder's photos by name; raises ValueError where it holds none."""
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in TYPES)
    if not files:
        raise ValueError(f"no photo ({', '.join(TYPES)}) in {folder}: name a folder of photos with --photos")
    return [Photo(file.name, multipart(file.name, file.read_bytes())) for file in files]


def multipart(name: str, content: bytes) -> bytes:
    """One file as a `multipart/form-data` body (RFC 7578)."""
    kind = TYPES[Path(name).suffix.lower()]
    part = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {kind}'
    head = f"--{BOUNDARY}\r\n{part}\r\n\r\n"
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def synthetic(folder: Path) -> Path:
    """Two photo-like JPEGs of the sizes people send (about 50 and 400 KB), for a checkout without photos."""
    import numpy as np  # noqa: PLC0415 - only where photos have to be made
    from PIL import Image  # noqa: PLC0415 - the same

    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height), blur in (("synthetic-500.jpg", (500, 375), 5), ("synthetic-1280.jpg", (1280, 1280), 7)):
        noise = np.random.default_rng(width).integers(0, 256, (height // blur, width // blur, 3), np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(folder / name, quality=85)
    return folder
