"""What tests with real containers share."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from perf import engine
from perf.compose import REPO


def missing() -> str | None:
    """Why these tests cannot run here."""
    if not engine.available():
        return "no Docker engine answers"
    if subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode:
        return "no compose plugin; deploy/docker-plugins brings it"
    if not list(REPO.glob("models/*/*/model.onnx")):
        return "no packages in models/ to put into the image"
    absent = [base for base in bases().values() if not inspect(base)]
    return f"no {' and '.join(sorted(set(absent)))}; docker pull or make base-images" if absent else None


def open_to_all(folder: Path) -> None:
    """Users of containers and nginx's workers are others: pytest's folders are its user's alone."""
    for level in [folder, *folder.parents]:
        if level == Path(tempfile.gettempdir()):
            return
        level.chmod(0o755)


def bases() -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+_BASE)=(\S+)$", (REPO / "Dockerfile").read_text(), re.MULTILINE))


def docker(*arguments: str, **options: Any) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, **options)
    return str(done.stdout).strip()


def inspect(image: str) -> dict[str, Any] | None:
    """What the engine says of an image; None where it has none of that name."""
    try:
        found: dict[str, Any] = engine.ask(f"/images/{image}/json")
    except engine.EngineError:
        return None
    return found


def tag() -> str:
    return dict(line.split("=", 1) for line in (REPO / ".env").read_text().splitlines() if "=" in line)["TAG"]
