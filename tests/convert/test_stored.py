"""Tensors in files."""

import errno
from pathlib import Path

import numpy as np
import pytest

from convert import stored
from convert.stored import Stored


def filled(*batches: np.ndarray) -> Stored:
    found = Stored()
    for batch in batches:
        found.append(batch)
    return found


def test_batches_come_back_as_they_were_stored() -> None:
    batches = [
        np.arange(30, dtype=np.uint8).reshape(2, 15),
        np.linspace(0, 1, 3000, dtype=np.float16).reshape(2, 3, 500)[:, ::-1],
        np.float32([[1.5]]),
    ]
    found = filled(*batches)
    assert len(found) == 3
    for one, batch in zip(found, batches, strict=True):
        assert one.dtype == batch.dtype
        assert np.array_equal(one, batch)
    assert [len(one) for one in found[1:]] == [2, 1]


def test_a_batch_that_is_held_is_not_written_over_when_its_tensor_is_gone() -> None:
    first = filled(np.full((4, 5000), 1, np.uint8))
    part = first[0][1:3, ::2]
    del first
    later = [filled(np.full((4, 5000), value, np.uint8)) for value in range(2, 10)]
    assert (part == 1).all()
    assert [int(one[0].mean()) for one in later] == list(range(2, 10))


def test_files_are_used_again_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SPARE", [])
    many = [filled(np.zeros((1, 10), np.uint8)) for _ in range(9)]
    files = [one.file for one in many]
    del many
    assert len(stored.SPARE) == stored.MOST_SPARE
    assert sum(file.closed for file in files) == 9 - stored.MOST_SPARE
    assert Stored().file in files
    for file in files:
        file.close()


def test_a_full_disk_is_an_error_not_a_shorter_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w+b", buffering=0) as full:
        monkeypatch.setattr(stored, "SPARE", [full])
        with pytest.raises(OSError) as raised:  # noqa: PT011  the number is looked at
            filled(np.zeros((1, 100_000), np.uint8))
        assert raised.value.errno == errno.ENOSPC
