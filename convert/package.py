"""Write the package: all of it or nothing. Contract: docs/package.md."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from convert.errors import ConvertError

FILES = ("model.onnx", "golden.npz")


def describe(path: Path, properties: Mapping[str, Any]) -> None:
    """Put `sous.` metadata into an ONNX file, so that a copied file still serves."""
    model = onnx.load(path)
    plain = {"format", "precision", "verdict"}
    helper.set_model_props(
        model,
        {
            f"sous.{key}": value if key in plain else json.dumps(value, ensure_ascii=False)
            for key, value in properties.items()
        },
    )
    onnx.save(model, path)


def check_target(models: Path, name: str, version: int, *, replace: bool) -> Path:
    """Where the package will be; refuses to overwrite unless told to."""
    target = models / name / str(version)
    if target.exists() and not replace:
        raise ConvertError(f"{target} exists: choose another --version, or give --replace")
    return target


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside the target to write into. Left without an error, it is synced and becomes the target in one
    rename; on an error nothing of it stays."""
    existing = next(parent for parent in target.parents if parent.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    old = folder.with_name(f"{folder.name}-old")
    try:
        yield folder
        for file in (*folder.iterdir(), folder):
            sync(file)
        folder.chmod(0o755)
        if target.exists():
            target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        sync(target.parent)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(target.parent, existing)
        raise


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_empty(folder: Path, until: Path) -> None:
    """Remove the empty folders that were made for a package that did not come to be."""
    while folder != until and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of the package's binary files."""
    return {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in FILES
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Readable JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
