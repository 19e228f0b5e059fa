"""A package comes whole or not at all."""

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from convert import package
from convert.command import answered, main
from convert.endings import SIGNALS, catch, interrupted
from convert.errors import ConvertError
from convert.package import staged
from tests.convert import sources
from tests.convert.conftest import Outcome, without_bars

Convert = Callable[..., Outcome]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("always_int8")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_existing_version_is_kept_unless_it_is_to_be_replaced(saved: Path, convert: Convert) -> None:
    folder = convert(saved).package
    (folder / "mark").touch()
    outcome = convert(saved)
    assert outcome.status == 2
    assert outcome.err.endswith("exists: choose another --version, or give --replace")
    assert (folder / "mark").exists()
    assert convert(saved, "--replace").status == 0
    assert set(contents(folder)) == {"model.onnx", "golden.npz", "report.json", "MODEL_CARD.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_a_refusal_by_the_gate_says_which_limit_and_what_to_try(
    saved: Path, convert: Convert, scratch: Path, tmp_path: Path
) -> None:
    outcome = convert(fragile(saved, tmp_path), images=sources.write_unlabelled(tmp_path / "unlabelled"))
    assert outcome.status == 3
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith("convert: not packaged: ")
    assert "agreement " in outcome.err
    assert "limit 97 % (by " in outcome.err
    assert "Try " in outcome.err
    assert "--gate-agreement" in outcome.err
    assert not (tmp_path / "models").exists()
    assert list(scratch.iterdir()) == []


def fragile(saved: Path, folder: Path) -> Path:
    """The same network, deciding by where its features vary least: far below a step of u8."""
    import keras  # noqa: PLC0415

    model = keras.models.load_model(saved)
    head = model.get_layer("head")
    images = np.stack([sources.picture(i % 4, i) for i in range(200)]).astype(np.float32) / 255
    features = np.asarray(keras.Model(model.inputs[0], head.input)(images)).astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(features.T))
    least = directions[:, :2] / np.sqrt(np.maximum(variances[:2], 1e-12)) * 4
    kernel = np.concatenate([least, -least], 1)
    head.set_weights([kernel, -features.mean(0) @ kernel])
    model.save(folder / "fragile.keras")
    return folder / "fragile.keras"


def test_a_refused_replacement_keeps_the_package(saved: Path, convert: Convert, tmp_path: Path) -> None:
    folder = convert(saved).package
    before = contents(folder)
    outcome = convert(fragile(saved, tmp_path), "--replace", images=sources.write_unlabelled(tmp_path / "unlabelled"))
    assert outcome.status == 3
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("stage", ["staged", "renaming"])
def test_an_error_while_writing_leaves_the_old_package(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "models" / "small" / "1"
    with package.staged(target, replace=True) as folder:
        (folder / "old").touch()
    rename = Path.rename

    def failing(self: Path, other: Path) -> Path:
        if stage == "renaming" and other == target and not self.name.endswith("-old"):
            raise OSError("the disk is gone")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        write_another(target, fail=stage == "staged")
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def write_another(target: Path, *, fail: bool) -> None:
    with package.staged(target, replace=True) as folder:
        (folder / "new").touch()
        if fail:
            raise OSError("the disk is gone")


def test_folders_made_for_nothing_are_removed_and_others_kept(tmp_path: Path) -> None:
    (tmp_path / "models" / "other").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), package.staged(tmp_path / "models" / "new" / "1", replace=False):
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["other"]


def test_what_appears_at_the_target_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "models" / "small" / "1"
    stage = package.staged(target, replace=False)
    stage.__enter__()
    (target / "other").mkdir(parents=True)
    with pytest.raises(ConvertError, match="1 exists: choose another --version"):
        stage.__exit__(None, None, None)
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    target, store = tmp_path / "models" / "small" / "1", tmp_path / "store"
    store.mkdir()
    target.parent.mkdir(parents=True)
    target.symlink_to(store)
    write_another(target, fail=False)
    assert store.is_dir()
    assert not target.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_a_version_too_long_for_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        write_another(tmp_path / "models" / "small" / ("9" * 250), fail=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raised", [OSError, KeyboardInterrupt])
def test_what_fails_once_the_package_is_there_does_not_deny_it(
    raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sync = tmp_path / "models" / "small" / "1", package.sync

    def failing(path: Path) -> None:
        if path == target.parent:
            raise raised
        sync(path)

    monkeypatch.setattr(package, "sync", failing)
    write_another(target, fail=False)
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_package_in_a_folder_of_any_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.command.convert", lambda *_: {})
    monkeypatch.setattr("convert.command.table", lambda _: "")
    words = ["x.keras", "--name", "small", "--images", "x", "--models", os.fsdecode(b"mod\xe8les")]
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out:
        assert main(words) == 0
        out.seek(0)
        assert out.read() == "\nwritten: mod\\xe8les/small/1\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_process_says_so_and_leaves_nothing(
    sent: signal.Signals, saved: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    words = [str(saved), "--name", "small", "--images", str(photos), "--models", str(tmp_path / "models")]
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        running = subprocess.Popen(
            [sys.executable, "-m", "convert", *words],
            stderr=stderr,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path / "scratch")},
        )
        wait_for(lambda: "measure plans" in errors.read_text())  # a network and a package folder are half made
        for _ in range(3):  # who is impatient does not spoil the clean-up
            running.send_signal(sent)
            time.sleep(0.01)
        status = running.wait(30)
    assert status == 2
    assert without_bars(errors.read_text()) == "convert: interrupted: nothing was written"
    assert not (tmp_path / "models").exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_signal_between_the_renames_neither_loses_the_old_package_nor_denies_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "small" / "1", Path.rename
    before = {number: signal.getsignal(number) for number in SIGNALS}
    target.mkdir(parents=True)

    def then_signal(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        os.kill(os.getpid(), signal.SIGTERM)
        return moved

    monkeypatch.setattr(Path, "rename", then_signal)
    catch()
    try:
        with staged(target, replace=True) as folder:
            (folder / "new").touch()
        assert signal.getsignal(signal.SIGTERM) is interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_libraries_load_is_told_in_one_line_too(sent: signal.Signals, tmp_path: Path) -> None:
    words = ["x.keras", "--name", "small", "--images", "x", "--models", str(tmp_path / "models")]
    command = [sys.executable, "-X", "importtime", "-m", "convert", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stderr
        before = iter(running.stderr.readline, "")
        next(line for line in before if "convert.endings" in line)
        next(line for line in before if "numpy" in line)  # a part of it: its loading goes on
        running.send_signal(sent)
        rest = [line for line in before if not line.startswith("import time:")]
    assert running.returncode == 2
    assert rest == ["convert: interrupted: nothing was written\n"]


class Full:
    """Standard output on a full disk."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("kept", "status"), [("report.json has it", 0), ("", 2)])
def test_a_result_that_cannot_be_printed_is_a_failure_only_where_it_is_nowhere_else(
    kept: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert answered(lambda: "a table", kept) == status
    told = capsys.readouterr().err
    assert told.startswith("convert: done, but standard output cannot be written to (No space left on device)")
    assert kept in told


def wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KB."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{kilobytes}"
        folder.mkdir()
        command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a file system can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 8, 16, 20])  # from the first file to the last
def test_a_full_disk_under_the_models(
    kilobytes: int, saved: Path, convert: Convert, small_disk: Callable[[int], Path]
) -> None:
    models = small_disk(kilobytes)
    outcome = convert(saved, "--models", str(models))
    assert outcome.status == 2
    assert outcome.err.splitlines() == [outcome.err]
    assert f"no space left for {models}/small: free some, or name a folder on another disk" in outcome.err
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [4, 8, 16])
def test_a_full_temporary_folder(  # noqa: PLR0917
    kilobytes: int,
    saved: Path,
    convert: Convert,
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk(kilobytes)))
    outcome = convert(saved)
    assert outcome.status == 2
    assert outcome.err.splitlines() == [outcome.err]
    assert "no space left" in outcome.err
    assert "TMPDIR" in outcome.err
    assert not (tmp_path / "models").exists()
