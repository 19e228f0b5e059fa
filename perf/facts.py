"""What stays the same over a run: the machine, the versions, and what the packages say of the models."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from perf.deployment import keras_file

PACKAGES = (
    *("onnxruntime", "numpy", "litestar", "gunicorn", "uvicorn", "uvloop", "simplejpeg"),
    *("tensorflow-cpu", "keras", "flask", "locust"),
)
TOOLS = {"nginx": ["nginx", "-v"], "docker": ["docker", "--version"], "wrk": ["wrk", "-v"], "siege": ["siege", "-V"]}
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")  # what int8 and float kernels look for


def machine() -> dict[str, Any]:
    """CPU, cores, memory, kernel, versions and the commit measured."""
    info = Path("/proc/cpuinfo").read_text()
    flags = set((re.search(r"^flags\s*:(.*)$", info, re.M) or [""])[0].split())
    return {
        "cpu": (re.search(r"^model name\s*:\s*(.*)$", info, re.M) or ["", platform.processor()])[1],
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages and tools that are installed here."""
    found = {name: version for name in PACKAGES if (version := _package_version(name))}
    return found | {name: version for name, command in TOOLS.items() if (version := _tool_version(command))}


def _package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tool_version(command: list[str]) -> str | None:
    if not shutil.which(command[0]):
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - constants
    number = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return number[0] if number else None


def commit() -> str:
    """Short hash of the checkout, marked where files differ from it; empty outside a checkout or without git."""
    if not shutil.which("git"):
        return ""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603 - constants
    dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)  # noqa: S603 - constants
    return head.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")


def model(name: str, models_dir: Path, sources: Path) -> dict[str, Any]:
    """Accuracy and sizes of a model: its newest package, and the Keras file it came from.

    Raises:
        FileNotFoundError: there is no package of that name.
        ValueError: its report.json is damaged.
    """
    folder = newest_package(models_dir / name)
    source = keras_file(sources, name)
    try:
        report = json.loads((folder / "report.json").read_text())
        evaluation = report["evaluation"]
        served = "float" if report["verdict"] == "keep float" else "int8"
        return {
            "version": report["version"],
            "verdict": report["verdict"],
            "photos": evaluation["photos"],
            "agreement": evaluation.get("agreement"),
            "accuracy": fraction(evaluation.get(served, {}).get("top1")),
            "float_accuracy": fraction(evaluation.get("float", {}).get("top1")),
            "package_bytes": report["files"]["model.onnx"]["bytes"],
            "source_bytes": source.stat().st_size if source else None,
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'report.json'} is damaged ({error!r}): convert the model again") from error


def fraction(percent: float | None) -> float | None:
    """Of a share in percent, as report.json has top-1; None stays None."""
    return None if percent is None else percent / 100


def newest_package(folder: Path) -> Path:
    """The package with the highest version under `models/NAME`."""
    found = [p.parent for p in folder.glob("*/report.json") if p.parent.name.isdigit()]
    if not found:
        raise FileNotFoundError(
            f"no package in {folder}: make one with python -m convert, or name their folder with --models-dir"
        )
    return max(found, key=lambda path: int(path.name))


def names(models_dir: Path) -> list[str]:
    """The models that have a package, by name."""
    return sorted({p.parents[1].name for p in models_dir.glob("*/*/report.json")})
