"""The header of a JPEG, read without decoding it (ITU-T T.81 B.1, Exif 2.32 4.6.2)."""

import struct
from dataclasses import dataclass

_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # TEM, RSTn, SOI: markers without a length
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; not DHT, JPG, DAC
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """What the segments before the first scan say; sizes in pixels, as stored (before `orientation`)."""

    height: int
    width: int
    components: int
    precision: int  # bits a sample
    orientation: int  # Exif, 1 to 8
    multiscan: bool  # progressive, or the components in scans of their own
    segments: tuple[tuple[int, int, int], ...]  # marker, start, end: everything before the first scan
    scan: int  # where the first scan starts


def read_header(data: bytes) -> Header:
    """Header of a JPEG. ValueError where the segments do not lead to a scan."""
    frame, orientation, position, segments = None, 1, 2, []
    try:
        while True:
            marker, position = _next_marker(data, position)
            if marker in _STANDALONE:
                continue
            end = position + struct.unpack_from(">H", data, position)[0]
            if marker == 0xDA:
                break
            segments.append((marker, position - 2, end))
            if marker in _FRAMES and frame is None:
                frame = (marker, *struct.unpack_from(">BHHB", data, position + 2))
            elif marker == 0xE1 and orientation == 1 and data[position + 2 : position + 8] == b"Exif\0\0":
                orientation = read_orientation(data[position + 8 : end])
            position = end
        if frame is None:
            raise ValueError("no frame before the first scan")
        sof, precision, height, width, components = frame
        multiscan = sof in _PROGRESSIVE or data[position + 2] < components
    except (struct.error, IndexError):
        raise ValueError("the header is cut short") from None
    return Header(height, width, components, precision, orientation, multiscan, tuple(segments), position - 2)


def read_orientation(tiff: bytes) -> int:
    """Exif orientation, 1 to 8, of a TIFF block; 1 where it is absent or the block is damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            return 1
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """Marker at `position` and where its body starts; fill bytes (FF FF) are skipped."""
    if data[position] != 0xFF:
        raise ValueError("no marker where one must be")
    while data[position] == 0xFF:
        position += 1
    return data[position], position + 1
