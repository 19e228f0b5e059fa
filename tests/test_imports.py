"""The import contracts of pyproject.toml hold."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def test_imports_go_one_way() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([lint_imports, "--no-cache"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "4 kept, 0 broken" in checked.stdout


def test_serving_loads_nothing_of_conversion_or_load_testing() -> None:
    program = """
import sys, service.app
heavy = {"tensorflow", "keras", "onnx", "tf2onnx", "convert", "perf", "matplotlib", "scipy", "pandas"}
sys.exit(", ".join(heavy & sys.modules.keys()) or 0)
"""
    checked = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
