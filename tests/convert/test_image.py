"""The conversion in its container."""

import os
from pathlib import Path

import pytest

from perf.compose import REPO
from tests.deploy.containers import docker, missing, open_to_all, tag


@pytest.mark.docker
def test_the_image_converts_without_network_root_or_a_writable_root(saved: Path, photos: Path, tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    image = f"sous/convert:{tag()}"
    docker("build", "--quiet", "--target", "convert", "--tag", image, str(REPO))
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o777)  # the image's user is another
    for folder in (tmp_path, saved.parent, photos):
        open_to_all(folder)
    hardened = ["--read-only", "--tmpfs", "/tmp", "--network", "none", "--cap-drop", "ALL"]
    one_core = ["--cpuset-cpus", str(min(os.sched_getaffinity(0)))]  # has few plans to measure
    mounts = {saved: "/in/small.keras:ro", photos: "/in/photos:ro", tmp_path / "models": "/out"}
    volumes = [word for path, inside in mounts.items() for word in ("--volume", f"{path}:{inside}")]
    quick = "import sys; from convert import command, timing; timing.CALLS = 10; sys.exit(command.main())"
    given = ["-c", quick, "/in/small.keras", "--name", "small", "--images", "/in/photos", "--models", "/out"]
    said = docker("run", "--rm", *hardened, *one_core, *volumes, "--entrypoint", "python3", image, *given)
    assert "written: /out/small/1" in said
    assert (tmp_path / "models/small/1/model.onnx").exists()
