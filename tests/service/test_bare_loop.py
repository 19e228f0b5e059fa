import json
import sys

import pytest

from service import bare_loop
from tests.service.packages import jpeg, write_package


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["decode"], {"decode_ms"}),
        (["loop"], {"photos", "cpu_s", "wall_s"}),
        (["loop", "--intra-op-threads=2", "--as-served"], {"photos", "cpu_s", "wall_s"}),
        (["latency"], {"decode_ms", "infer_ms"}),
    ],
)
def test_the_floor_is_measured_on_the_services_own_pieces(asked, found, tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").write_bytes(jpeg("green", (400, 300)))
    onnx = write_package(tmp_path / "models") / "model.onnx"
    options = ["--onnx", str(onnx), "--count", "6", "--threads", "2", *asked[1:]]
    monkeypatch.setattr(sys, "argv", ["bare_loop", asked[0], str(tmp_path / "photo.jpg"), *options])
    bare_loop.main()
    measured = json.loads(capsys.readouterr().out)
    assert set(measured) == found
    assert all(value > 0 for value in measured.values())
    assert measured.get("photos", 6) == 6
