"""The models folder: which packages there are, and each of them checked, loaded, warmed and self-tested."""

import ctypes
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from service import cpu
from service.errors import UnknownModel
from service.metrics import Meters
from service.model import Model, PackageError
from service.settings import Settings

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Package:
    """`models/NAME/VERSION/`, read but not loaded. A lone `model.onnx` has an empty report."""

    name: str
    version: int
    folder: Path
    report: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Served:
    """A package that is loaded, warmed at the batch sizes in use, and has reproduced its golden set."""

    package: Package
    model: Model
    plan: cpu.Plan
    golden_drift: float | None  # largest |dp| from the float model on the golden set; None without one
    meters: Meters
    image_s: float = math.nan  # one image by this plan, seconds: measured once all are loaded, nothing else running


class Repository:
    """What is served, by name and version."""

    def __init__(self, served: list[Served], default_model: str = "") -> None:
        self._versions: dict[str, dict[int, Served]] = {}
        for each in served:
            self._versions.setdefault(each.package.name, {})[each.package.version] = each
        self._default = default_model or min(self._versions)

    def find(self, name: str | None = None, version: int | None = None) -> Served:
        """The named version; the highest without one; of the default model without a name.

        Raises:
            UnknownModel: nothing of that name or version is served.
        """
        name = name or self._default
        versions = self.versions(name)
        if version is None:
            return versions[max(versions)]
        if version not in versions:
            raise UnknownModel(f"Model {name} has no such version. It has {', '.join(map(str, sorted(versions)))}.")
        return versions[version]

    def versions(self, name: str) -> Mapping[int, Served]:
        if name not in self._versions:
            raise UnknownModel(f"There is no such model. There is {', '.join(self.names())}.")
        return self._versions[name]

    def names(self) -> list[str]:
        return sorted(self._versions)

    def __iter__(self) -> Iterator[Served]:
        return (served for name in self.names() for _, served in sorted(self._versions[name].items()))


def open_repository(settings: Settings) -> Repository:
    """Load every package of the models folder, side by side.

    Raises:
        PackageError: there is none, one of them cannot be served, or the default model is not among them.
    """
    packages = list(scan(Path(settings.models_dir)))
    names = sorted({package.name for package in packages})
    if settings.default_model and settings.default_model not in names:
        raise PackageError(
            f"SOUS_DEFAULT_MODEL is {settings.default_model}, which is not in SOUS_MODELS_DIR: set it to one of"
            f" {', '.join(names)}"
        )
    cores = settings.cores or cpu.cores()
    with ThreadPoolExecutor(cores) as pool:
        loaded = list(pool.map(partial(load, cores=cores, settings=settings), packages))
    served = [replace(each, image_s=_seconds(each.model, time.perf_counter)) for each in loaded]
    for each in served:
        name, version = each.package.name, each.package.version
        log.info("%s %d is loaded: %s, %.1f ms an image", name, version, each.plan, each.image_s * 1e3)
    ctypes.CDLL(None).malloc_trim(0)  # back to the system what parsing and prepacking left
    return Repository(served, settings.default_model)


def scan(models_dir: Path) -> Iterator[Package]:
    """Packages in the folder, also those that have lost their model. Names and versions by the rule of docs/package.md;
    all else is left alone."""
    try:
        names = [path for path in sorted(models_dir.iterdir()) if NAME.fullmatch(path.name) and path.is_dir()]
        versions = [path for name in names for path in sorted(name.iterdir()) if _is_version(path.name)]
        found = [path for path in versions if (path / "model.onnx").exists() or (path / "report.json").exists()]
    except (FileNotFoundError, NotADirectoryError):  # of the folder itself
        found = []
    except OSError as error:
        raise PackageError(f"{error.filename} cannot be read ({error.strerror}): let this user read it") from None
    if not found:
        raise PackageError(f"no package in {models_dir}/NAME/VERSION/: convert one, or set SOUS_MODELS_DIR")
    for folder in found:
        yield Package(folder.parent.name, int(folder.name), folder, _read_report(folder / "report.json"))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and not name.startswith("0")


def _read_report(path: Path) -> Mapping[str, Any]:
    try:
        report: Mapping[str, Any] = json.loads(path.read_bytes())
        _ = [report["files"][name]["sha256"] for name in {"model.onnx", *report["files"]}]  # each has its hash
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"{path} cannot be read as a report ({error!r}): convert it again") from None
    return report


def load(package: Package, cores: int, settings: Settings) -> Served:
    """One package, from its folder to ready.

    Raises:
        PackageError: a file differs from its hash, is no package, or answers otherwise than the float model did.
    """
    _check_hashes(package)
    path = package.folder / "model.onnx"
    stored = _stored_plan(package, cores)
    plan = cpu.choose_plan(cores, stored, partial(_one_thread_ms, path), msgspec.structs.asdict(settings))
    model = Model(path, plan.intra_op_threads)
    for size in range(1, plan.max_batch_size + 1):
        model.infer(_blank(model, size))
    drift = _replay_golden(package, model, plan)
    return Served(package, model, plan, drift, Meters(package.name, package.version))


def _stored_plan(package: Package, cores: int) -> cpu.Plan | None:
    if "plan" not in package.report:
        return None
    try:
        return cpu.stored_plan(package.report["plan"], cores)
    except (KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{package.folder / 'report.json'} has a bad plan ({error!r}): convert it again") from None


def _check_hashes(package: Package) -> None:
    for name, member in package.report.get("files", {}).items():
        path = package.folder / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PackageError(
                f"{path} is in the report, but cannot be read ({error.strerror}): copy the package again, for this"
                " user to read"
            ) from None
        if found != member["sha256"]:
            raise PackageError(f"{path} differs from the hash in its report: copy the package again")


def _one_thread_ms(path: Path) -> float:
    """Of one image, by the thread's own CPU time: other models load at the same moment."""
    model = Model(path, intra_op_threads=1)
    model.infer(_blank(model, 1))
    return _seconds(model, time.thread_time) * 1e3


def _seconds(model: Model, clock: Callable[[], float]) -> float:
    begun = clock()
    model.infer(_blank(model, 1))
    return clock() - begun


def _blank(model: Model, size: int) -> NDArray[np.uint8]:
    contract = model.metadata.contract
    return np.zeros((size, contract.height, contract.width, 3), np.uint8)


def _replay_golden(package: Package, model: Model, plan: cpu.Plan) -> float | None:
    """Largest |dp| from the float model's answers, with as many calls at once as will be served.

    Raises:
        PackageError: it is above the package's tolerance, or the set cannot be replayed.
    """
    path = package.folder / "golden.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as golden:
            inputs, expected, tolerance = golden["inputs"], golden["probabilities"], float(golden["tolerance"])
        size = plan.max_batch_size
        with ThreadPoolExecutor(plan.slots) as slots:
            answers = list(
                slots.map(model.infer, (inputs[start : start + size] for start in range(0, len(inputs), size)))
            )
        drift = float(np.abs(np.concatenate(answers) - expected).max())
    except Exception as error:  # a damaged archive, or inputs the session refuses
        raise PackageError(f"{path} cannot be replayed ({error!r}): convert it again") from None
    if not drift <= tolerance:
        raise PackageError(
            f"{package.name} {package.version} does not reproduce its golden set on this CPU: "
            f"max |dp| {drift:.4f}, tolerance {tolerance:.4f}."
            " Convert it again with --weight-bits 7 (8 needs VNNI), or here."
        )
    return drift
