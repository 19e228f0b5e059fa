"""What a JPEG says before its first scan, read without decoding it (ITU-T T.81 annex B, Exif 2.32 section 4.6)."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_STANDALONE = {0x01, *range(0xD0, 0xD8)}  # TEM, RSTn: markers without a body
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; not DHT, JPG, DAC
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_SCAN, _EXIF, _FILL, _END = 0xDA, 0xE1, 0xFF, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)  # that ends a scan: no data, TEM, RSTn or filling
_NOT_THE_PICTURE = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APPn but JFIF's 0 and Adobe's 14, which say the colour; comments
_MAX_SEGMENTS = 1000  # 64 KB each; a time limit for files made of empty ones
_ORIENTATION_TAG = 0x0112
_WHOLE = {3: "H", 4: "I"}  # SHORT as the standard has it, LONG as some write it
_MAX_ENTRIES = 500  # of a TIFF directory; cameras write some 20


class Header(NamedTuple):
    """Sizes in pixels, as stored: before `orientation` is applied."""

    width: int
    height: int
    components: int
    precision: int  # bits a sample
    orientation: int  # Exif, 1 to 8
    multiscan: bool  # progressive, or each component in a scan of its own


def read_header(data: bytes) -> Header:
    """Header of a JPEG.

    Raises:
        ValueError, IndexError, struct.error: the segments do not lead to a scan.
    """
    frame, orientation = None, 0
    for marker, start, end in _segments(data):
        if marker in _FRAMES and frame is None:
            precision, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
            frame = Header(width, height, components, precision, 1, marker in _PROGRESSIVE)
        elif marker == _EXIF and not orientation and data.startswith(b"Exif\0\0", start + 4):
            orientation = read_orientation(data[start + 10 : end])
    if frame is None:
        raise ValueError("no frame before the first scan")
    multiscan = frame.multiscan or data[start + 4] < frame.components
    return frame._replace(orientation=orientation or 1, multiscan=multiscan)


def has_more_scans(data: bytes, most: int) -> bool:
    """Whether a JPEG has more scans up to its end, whatever follows it.

    Raises:
        ValueError, IndexError, struct.error: its segments make no sense, or are too many.
    """
    values = np.frombuffer(data, np.uint8)  # several times as fast as bytes.count
    if np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == _SCAN)) <= most:
        return False  # with those of previews, and of bytes that only look like one
    *_, (_, _, position) = _segments(data)
    scans = 1
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None or scans > most or data[found.start() + 1] == _END:
            return scans > most
        scans += data[found.start() + 1] == _SCAN
        position = found.end() + struct.unpack_from(">H", data, found.end())[0]
    raise ValueError("too many segments")


def picture_only(data: bytes) -> bytes:
    """The same JPEG without metadata, comments and further pictures, for a decoder that would read them."""
    kept = [(start, end) for marker, start, end in _segments(data) if marker not in _NOT_THE_PICTURE | {_SCAN}]
    *_, (_, scan, _) = _segments(data)
    return b"\xff\xd8" + b"".join(data[start:end] for start, end in kept) + data[scan:]


def read_orientation(tiff: bytes) -> int:
    """Exif orientation, 1 to 8, of a TIFF block; 1 where it is absent or the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * min(entries, _MAX_ENTRIES), 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == _ORIENTATION_TAG and kind in _WHOLE:
                (value,) = struct.unpack_from(order + _WHOLE[kind], tiff, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to and with the first scan's header."""
    position = 2
    for _ in range(_MAX_SEGMENTS):
        if data[position] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[position + 1]
        if marker == _FILL:
            position += 1
        elif marker in _STANDALONE:
            position += 2
        else:
            end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
            yield marker, position, end
            if marker == _SCAN:
                return
            position = end
    raise ValueError("too many segments")
