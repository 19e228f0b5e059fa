import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perf import compose, facts, results, stacks
from perf.__main__ import main, parser
from perf.commands import Progress, prepare, run_options, times
from perf.run import FULL, QUICK
from perf.samples import RESOURCES, SAMPLES


def options(models_dir: Path, photos_dir: Path, *given: str) -> Any:
    return run_options(
        parser().parse_args(
            ["run", "--models-dir", str(models_dir), "--photos", str(photos_dir), "--engine", "local", *given]
        )
    )


def test_options_are_in_wrks_terms(models_dir: Path, photos_dir: Path) -> None:
    made = options(
        models_dir, photos_dir, "-t", "2", "-c", "16", "-d", "1m", "--rate", "50", "--stacks", "single,scaled"
    )
    assert (made.threads, made.users, made.times.closed, made.rate, made.stacks) == (
        2,
        16,
        60,
        50,
        ("single", "scaled"),
    )
    assert made.models == ("mobilenet_v2",)


def test_a_duration_moves_the_other_loads_with_it() -> None:
    assert times(quick=False, closed_s=None) == FULL
    assert times(quick=False, closed_s=60).rate == 2 * FULL.rate
    assert times(quick=True, closed_s=None) == QUICK


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--models", "nosuch"], "no package of nosuch in .*: name others with --models"),
        (["--stacks", "single,triple"], "unknown stack triple: choose from plain, single, balanced, scaled"),
        (["--stacks", "single,single"], "single named twice"),
        (["--models", "mobilenet_v2,mobilenet_v2"], "mobilenet_v2 named twice"),
        (["-t", "20"], "-t 20 with -c 10: a thread needs a connection"),
        (["-t", "2", "--tool", "siege"], "-t 2: siege runs a thread a user, in one process: leave -t out"),
        (["--photos", "/nonexistent"], "no photo .*: name a folder of photos with --photos"),
        (["--min-accuracy", "58"], "--min-accuracy 58: top-1 is between 0 and 1"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    models_dir: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(["run", "--models-dir", str(models_dir), "--engine", "local", "--out", str(tmp_path / "out"), *given]) == 2
    )
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        ["-d", "0s"],
        ["-d", "soon"],
        ["-d", "inf"],
        ["-c", "0"],
        ["--rate", "-1"],
        ["--rate", "nan"],
        ["--tool", "ab"],
        ["--stacks", ","],
        ["--models", ""],
    ],
)
def test_an_option_out_of_range_is_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["run", *given])


@pytest.mark.parametrize("file", ["thesis.txt", "plots/thesis.png"])
def test_a_folder_with_other_files_is_not_written_to(
    file: str, models_dir: Path, photos_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / file).parent.mkdir(parents=True)
    (tmp_path / "out" / file).write_text("years of work")
    given = [
        "--models-dir",
        str(models_dir),
        "--photos",
        str(photos_dir),
        "--engine",
        "local",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(["run", *given]) == 2
    assert f"holds other files ({Path(file).parts[0]})" in capsys.readouterr().err
    assert (tmp_path / "out" / file).read_text() == "years of work"


def test_what_a_killed_run_was_writing_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".results.json").write_text('{"run"')
    prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_results_is_a_mistake_in_one_line(
    models_dir: Path, photos_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    given = ["--models-dir", str(models_dir), "--photos", str(photos_dir), "--engine", "local"]
    assert main(["run", *given, "--out", str(tmp_path / "thesis.txt")]) == 2
    assert re.fullmatch(r"error: .*thesis\.txt.*\n", capsys.readouterr().err)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("command", [["run", "--engine", "docker"], ["up", "single", "--engine", "docker"]])
def test_an_engine_that_cannot_be_used_is_one_line_and_status_2(
    command: list[str],
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    compose.build.cache_clear()
    out = ["--out", str(tmp_path / "out")] if command[0] == "run" else []
    assert main([*command, "--models-dir", str(models_dir), *out]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error == ["error: no docker command; install Docker or use the local engine"]
    assert not (tmp_path / "out").exists()


def test_paths_are_taken_from_where_the_user_is(tmp_path: Path) -> None:
    (tmp_path / "perf.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "mine").mkdir()
    script = Path(__file__).parents[2] / "perf/run.sh"
    done = subprocess.run(
        [script, "--photos", "mine", "--models-dir", "packages"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no package of any in packages" in done.stderr
    done = subprocess.run([script, "--photos", "mine"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{tmp_path}/mine" in done.stderr


def test_without_git_a_run_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert facts.commit() == ""


def test_a_run_ends_in_a_report(  # noqa: PLR0917 - fixtures
    models_dir: Path,
    photos_dir: Path,
    tmp_path: Path,
    server: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextlib.contextmanager
    def up(kind: str, **_: Any) -> Iterator[Any]:
        yield server

    monkeypatch.setattr(stacks, "up", up)
    out = tmp_path / "out"
    given = [
        "--models-dir",
        str(models_dir),
        "--photos",
        str(photos_dir),
        "--engine",
        "local",
        "--out",
        str(out),
        "-d",
        "1s",
        "--quick",
    ]
    status = main(["run", *given, "--stacks", "single", "--tool", "locust"])
    printed = capsys.readouterr().out
    assert "1 cell (single x mobilenet_v2), about" in printed.splitlines()[0]
    assert "Latency Distribution" in printed
    assert "Requests/sec:" in printed
    assert status in (0, 1)  # 1 where this machine is too busy for the cell to be valid
    assert {p.name for p in out.iterdir()} == {
        "results.json",
        "samples.csv",
        "resources.csv",
        "report.html",
        "report.md",
        "plots",
        "run.log",
    }


def test_an_interrupt_outside_of_a_load_is_one_line_and_status_130(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "read", lambda _: signal.raise_signal(signal.SIGINT))
    assert main(["compare", str(finished), str(finished)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_bar_shows_the_cell_its_share_and_what_is_left(
    models_dir: Path, photos_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", "--quick", "--engine", "local", "--models-dir", str(models_dir), "--photos", str(photos_dir)]
    options = run_options(parser().parse_args([*line, "--stacks", "single"]))
    with Progress(options, latency=False) as progress:
        progress.bar.mininterval = 0
        progress.tick("single mobilenet_v2", progress.planned / 2)
        progress.measured({"stack": "single", "model": "mobilenet_v2", "reason": "failed: on purpose"}, [])
    shown = capsys.readouterr()
    assert re.search(r"single mobilenet_v2 +50% \|.+\| 00:0\d passed, about 0:\d\d left", shown.err)
    assert re.search(r"100% \|.+\| 00:0\d passed, about 0:00 left", shown.err)
    assert "failed: on purpose" in shown.out


def test_a_report_is_drawn_again_with_constraints(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(finished), "--min-accuracy", "0.595"]) == 0
    assert "lowest cost: resnet101_v2 on single" in capsys.readouterr().out
    assert "accuracy at least 0.595" in (finished / "report.md").read_text()


def test_a_plan_names_replicas_cores_and_price(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(finished), "--rate", "5000", "--max-p99-ms", "200", "--mix", "a.jpg=3,b.jpg=1"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("mobilenet_v2 ")).split()
    assert int(row[1]) >= 5000 * 0.0055 / 0.8 / 0.5
    assert "Queueing model against measurement" in printed
    assert main(["plan", str(finished), "--rate", "5000", "--max-p99-ms", "200", "--cpus", "2"]) == 0
    larger = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mobilenet_v2 ")).split()
    assert int(larger[1]) < int(row[1]) / 3


def test_a_plan_for_a_photo_that_was_not_measured_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(finished), "--rate", "5", "--mix", "c.jpg=1"]) == 2
    assert "photo c.jpg was not measured: choose from a.jpg, b.jpg" in capsys.readouterr().err


def test_two_runs_are_compared(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(finished), str(finished)]) == 0
    assert "no difference shown" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["options", "machine", "models", "cpus", "latency"])
def test_damaged_results_are_refused_in_one_line(
    damage: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(finished, *results.read(finished))
    for kept in (SAMPLES, RESOURCES):
        (finished / kept).unlink()
    data = json.loads((finished / results.RESULTS).read_text())
    if damage == "latency":
        data["cells"][0]["latency"] = []
    elif damage == "cpus":
        data["run"]["options"]["cpus"] = "half"
    else:
        del data["run"][damage]
    (finished / results.RESULTS).write_text(json.dumps(data))
    for command, *more in (["report"], ["plan", "--rate", "5"], ["compare", str(finished)]):
        assert main([command, str(finished), *more]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "holds no results of a run" in error


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no results of a run" in capsys.readouterr().err
