"""The README names every route, error code and metric (test_settings.py holds its settings)."""

import re

import httpx

from service import metrics
from service.errors import ServiceError
from service.image import ImageError
from service.routes import CODES
from tests.service.running import CHECKOUT, Server

README = (CHECKOUT / "README.md").read_text()


def codes(root: type[ServiceError | ImageError]) -> set[tuple[int, str]]:
    below = [code for child in root.__subclasses__() for code in codes(child)]
    return set(below) or {(root.status, root.code)}


def test_every_route_stands_in_the_readme(server: Server) -> None:
    paths = httpx.get(f"{server.url}/schema").json()["paths"]
    assert len(paths) >= 6
    first = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    for path, operations in paths.items():
        [methods] = [column for column in first if column.endswith(f" {path}` ")]
        assert {method.upper() for method in operations} == set(re.findall("GET|HEAD|POST", methods))


def test_every_error_code_stands_in_the_readme_in_the_row_of_its_status() -> None:
    rows = {int(row.split("|")[1]): row for row in README.splitlines() if row.startswith("| ") and row[2:5].isdigit()}
    for status, code in codes(ServiceError) | codes(ImageError) | set(CODES.items()) | {(500, "internal_error")}:
        assert f"`{code}`" in rows[status]


def test_every_metric_stands_in_the_readme_with_its_labels() -> None:
    families = [each for each in vars(metrics).values() if hasattr(each, "_labelnames")]
    assert len(families) == 5
    for family in families:
        name = family._name + ("_total" if family._type == "counter" else "")
        assert f"| `{name}` | {', '.join(family._labelnames)} |" in README
