"""What is installed is pinned by hash, and says of no place where it came from."""

import re
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
FILES = {"service": 20, "convert": 40, "dev": 60, "uv": 1}  # requirements at least
PIN = re.compile(r"^([a-z0-9._-]+)==\S+( ; .+)? \\$", re.MULTILINE)


def pins(name: str) -> list[str]:
    """One text a requirement."""
    text = (CHECKOUT / f"requirements/{name}.txt").read_text()
    return [part for part in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if part.strip()]


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_exact_has_hashes_and_no_address(name: str) -> None:
    found = pins(name)
    assert len(found) >= FILES[name]
    for pin in found:
        assert PIN.match(pin), pin
        assert "--hash=sha256:" in pin
        assert "://" not in pin


def test_what_the_project_names_is_what_is_pinned() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, wanted in {"service": ("service",), "convert": ("service", "convert"), "dev": tuple(extras)}.items():
        pinned = {match[1] for pin in pins(name) if (match := PIN.match(pin))}
        named = [*project.get("dependencies", []), *(one for extra in wanted for one in extras[extra])]
        plain = {re.split(r"[\[<>=!~; ]", one)[0].lower().replace("_", "-") for one in named}
        assert plain - {"sous"} <= pinned
