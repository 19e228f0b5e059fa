"""What the first bytes of an image file say: its type and size, and that reading on will take bounded time.

Each reader raises ValueError, IndexError or struct.error for a header that makes no sense.
"""

import struct
from collections.abc import Iterator

from service import jpeg

# Far more than any encoder writes, few enough to walk in milliseconds.
_MAX_JPEG_SCANS = 32  # each costs a pass over the picture, however few bytes it has; encoders write about 10
_MAX_PNG_CHUNKS = 20_000
_MAX_GIF_EXTENSIONS, _MAX_GIF_SUB_BLOCKS = 100, 2_000  # sub-blocks of all extensions together
_PNG_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}


def sniff(data: bytes) -> str | None:
    """Format by its signature, whatever the file's name or declared type; None if it is none that we take."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def read_size(kind: str, data: bytes) -> tuple[int, int]:
    """Width and height in pixels of what would be decoded."""
    return _SIZES[kind](data)


def weight(kind: str, data: bytes) -> int:
    """Memory of a pixel by that of others: Pillow decodes them in at most 10 bytes, WebP in 16, four colours in several
    scans in 12."""
    if kind == "JPEG":
        header = jpeg.read_header(data)
        return 2 if header.multiscan and header.components == 4 else 1
    return 2 if kind == "WEBP" else 1


def picture_only(kind: str, data: bytes) -> bytes:
    """The same file without what Pillow would read beside the picture: texts, profiles, previews, further frames."""
    return _PICTURES[kind](data) if kind in _PICTURES else data


def _jpeg_size(data: bytes) -> tuple[int, int]:
    header = jpeg.read_header(data)
    if header.multiscan and jpeg.has_more_scans(data, _MAX_JPEG_SCANS):
        raise ValueError("too many scans")
    return header.width, header.height


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind != b"VP8 ":
        raise ValueError("no VP8 chunk")
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:  # BITMAPCOREHEADER
        width, height = struct.unpack_from("<HH", data, 18)
        return width, height
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in (1, 2):  # decoded by an interpreted loop, for seconds if someone means it to
        raise ValueError("run-length coded")
    return width, abs(height)  # negative: rows from the top


def _gif_size(data: bytes) -> tuple[int, int]:
    """The screen, and the first picture where it reaches beyond: Pillow makes the screen larger then."""
    width, height = struct.unpack_from("<HH", data, 6)
    left, top, w, h = struct.unpack_from("<HHHH", data, _gif_parts(data)[-1] + 1)
    return max(width, left + w), max(height, top + h)


def _gif_parts(data: bytes) -> tuple[int, int, int]:
    """Start and end of the last graphic control extension (what is transparent), start of the first picture."""
    position, budget = _gif_palette_end(data), iter(range(_MAX_GIF_SUB_BLOCKS))
    control_start = control_end = position
    for _ in range(_MAX_GIF_EXTENSIONS):
        if data[position] == 0x2C:
            return control_start, control_end, position
        if data[position] != 0x21:
            raise ValueError("neither an extension nor a picture")
        start, position = position, _after_blocks(data, position + 2, budget)
        if data[start + 1] == 0xF9:
            control_start, control_end = start, position
    raise ValueError("too many extensions")


def _gif_palette_end(data: bytes) -> int:
    flags = data[10]
    return 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _after_blocks(data: bytes, position: int, budget: Iterator[int]) -> int:
    """Past the sub-blocks at `position`: a length byte and as many bytes each, ended by an empty one.

    Each takes one of `budget`.
    """
    for _ in budget:
        length = data[position]
        position += 1 + length
        if length == 0:
            return position
    raise ValueError("too many sub-blocks")


def _gif_picture(data: bytes) -> bytes:
    """Header, palette and the first picture with its graphic control extension."""
    start, end, picture = _gif_parts(data)
    return data[: _gif_palette_end(data)] + data[start:end] + data[picture:]


def _png_picture(data: bytes) -> bytes:
    parts, position = [data[:8]], 8
    for _ in range(_MAX_PNG_CHUNKS):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if kind in _PNG_PICTURE:
            parts.append(data[position:end])
        if kind == b"IEND" or end >= len(data):
            return b"".join(parts)
        position = end
    raise ValueError("too many chunks")


_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "WEBP": _webp_size, "BMP": _bmp_size, "GIF": _gif_size}
_PICTURES = {"JPEG": jpeg.picture_only, "PNG": _png_picture, "GIF": _gif_picture}
