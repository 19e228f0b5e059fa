"""The table that shows what our quantisation is worth."""

from pathlib import Path

import pytest

from convert import bench


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime.quantization")
def test_every_recipe_is_in_the_table(
    saved: Path, photos: Path, quick: None, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([str(saved), "--images", str(photos)]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == len(bench.HEAD) + 1
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}
    theirs = [name for name, _, _ in bench.RECIPES]
    assert list(cells) == ["float32", *theirs, "ours, 7 bits", "ours, 8 bits"]
    assert cells["float32"][:3] == ["0.00", "100.00 %", "0.00000"]
    assert cells[theirs[0]][-1] == "1.00"
    assert float(cells["ours, 7 bits"][2]) < float(cells[theirs[1]][2])  # mean |dp|, 7 bits both
    assert list(scratch.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime.quantization")
def test_onnx_runtime_calibrates_on_one_batch_after_the_other(
    saved: Path, photos: Path, quick: None, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    set_range = bench.Reader.set_range

    def count(reader: bench.Reader, start_index: int, end_index: int) -> None:
        asked.append(end_index - start_index)
        set_range(reader, start_index, end_index)

    monkeypatch.setattr(bench.Reader, "set_range", count)
    assert bench.main([str(saved), "--images", str(photos), "--calibration", "16"]) == 0
    assert asked == [2, 1, 1] * len(bench.RECIPES)  # the whole of 16 photos when it is made, then batch by batch


def test_its_help_is_its_own_and_has_no_options_of_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m convert.bench")
    assert "--macs" in shown
    assert not {"--name", "--version", "--replace", "--weight-bits"} & set(shown.replace(",", " ").split())


def test_a_mistake_is_answered_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(tmp_path / "missing.keras"), "--images", str(tmp_path)]) == 2
    assert "convert: no model at" in capsys.readouterr().err
