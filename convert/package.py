"""Write the package: all of it or nothing. Contract: docs/package.md."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from convert.endings import undisturbed
from convert.errors import FULL, ConvertError

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
    if os.path.lexists(target) and not replace:
        raise taken(target)
    return target


def taken(target: Path) -> ConvertError:
    """That there is something at the target already."""
    return ConvertError(f"{target} exists: choose another --version, or give --replace")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell a full disk by the folder written to: the system names no file where data found no room.

    Raises:
        ConvertError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ConvertError(
            f"no space left for {folder}: free some, or name a folder on another disk with --models"
        ) from error


@contextmanager
def staged(target: Path, *, replace: bool) -> Iterator[Path]:
    """A folder beside the target to write into. Left without an error, it is synced and becomes the target in one
    rename; on an error before that nothing of it stays, and none after it is raised.

    Raises:
        ConvertError: something appeared at the target meanwhile, and is not to be replaced.
    """
    existing = next(parent for parent in target.parents if parent.exists())
    try:
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield folder
            with writing(target.parent):
                for file in (*folder.iterdir(), folder):
                    sync(file)
            folder.chmod(0o755)
            with undisturbed():
                become(folder, target, replace=replace)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # nothing where it was renamed
    except BaseException:
        remove_empty(target.parent, existing)
        raise
    with suppress(OSError, KeyboardInterrupt):  # the package is there
        sync(target.parent)


def become(folder: Path, target: Path, *, replace: bool) -> None:
    """Rename a folder to the target. What is there is set aside meanwhile: then removed, on an error put back."""
    old = folder.with_name(f"{folder.name}-old")
    try:
        if os.path.lexists(target):
            if not replace:
                raise taken(target)
            target.rename(old)
        folder.rename(target)
    finally:
        if os.path.lexists(target):
            with suppress(OSError, KeyboardInterrupt):
                remove(old)
        elif os.path.lexists(old):
            old.rename(target)


def remove(path: Path) -> None:
    """Remove a folder, or a link and not what it leads to; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
