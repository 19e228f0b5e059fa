"""Tensors in files, a batch at a time: the walks' tensors do not fit memory."""

import mmap
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from convert.graph import Array

MOST_SPARE = 4
SPARE: list[IO[bytes]] = []  # files of tensors that nobody reads any more: to write over is four times as fast


class Stored(Sequence[Array]):
    """Batches of one tensor, in a file of its own until nobody holds it or one of its batches."""

    def __init__(self) -> None:
        self.file = SPARE.pop() if SPARE else tempfile.TemporaryFile()  # noqa: SIM115  closed by put_back
        self.file.seek(0)
        weakref.finalize(self, put_back, self.file)
        self.places: list[tuple[int, np.dtype[Any], tuple[int, ...]]] = []

    def append(self, batch: Array) -> None:
        """Store one more batch.

        Raises:
            OSError: the disk is full.
        """
        self.places.append((self.file.tell(), batch.dtype, batch.shape))
        self.file.write(np.ascontiguousarray(batch).data)
        self.file.flush()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        """A batch where it lies, read-only."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        offset, dtype, shape = self.places[index]
        before, count = offset % mmap.ALLOCATIONGRANULARITY, int(np.prod(shape))
        length = before + count * dtype.itemsize
        mapped = Mapped(self.file.fileno(), length, access=mmap.ACCESS_READ, offset=offset - before)
        mapped.owner = self
        return np.frombuffer(mapped, dtype, count, before).reshape(shape)


class Mapped(mmap.mmap):
    """Part of a file, which goes to no other tensor as long as somebody looks at this part."""

    owner: Stored


def put_back(file: IO[bytes]) -> None:
    """Keep a file for the next tensor, or close it."""
    if len(SPARE) < MOST_SPARE:
        SPARE.append(file)
    else:
        file.close()
