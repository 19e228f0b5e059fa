# ruff: noqa: N818  an exception is named after what is wrong with the upload
"""Uploaded bytes to the model's pixels: the one definition of preprocessing, shared by the service and `convert`.

JPEGs as cameras and phones write them take the fast path: libjpeg-turbo at a reduced scale where the contract's size
allows, then a SIMD resize. Everything unusual goes through Pillow. Both agree within 0.5 of 255 on average.
"""

import struct
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from cykooz_resizer import rust_lib as fir  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from service import jpeg

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_MAX_SCANS = 100  # encoders write about 10; each scan costs a pass over the whole image, however few bytes it has
_OVERSAMPLING = 2  # a JPEG is decoded to at least twice the contract's size, so that the resize has what it needs
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
_FAST_FILTERS = {"box": 1, "bilinear": 2, "bicubic": 3}  # 3: Catmull-Rom, Pillow's bicubic (a = -0.5)

warnings.simplefilter("error", Image.DecompressionBombWarning)


class ImageError(ValueError):
    """An upload that gives no pixels. `status` is HTTP's, `code` is stable, the message names cause and remedy."""

    status = 400
    code = "image"


class EmptyImage(ImageError):
    status, code = 400, "empty_image"


class TooManyBytes(ImageError):
    status, code = 413, "too_many_bytes"


class UnsupportedImageType(ImageError):
    status, code = 415, "unsupported_image_type"


class UndecodableImage(ImageError):
    status, code = 422, "undecodable_image"

    def __init__(self) -> None:
        super().__init__("The image is damaged or cut short. Export it again and send the whole file.")


class TooManyPixels(ImageError):
    status, code = 422, "too_many_pixels"


@dataclass(frozen=True)
class Contract:
    """How an image becomes the model's input: RGB of `height` x `width` pixels."""

    height: int
    width: int
    resize: str = "bicubic"  # bicubic, bilinear, box or nearest
    crop: str = "none"  # none: squeezed to size; center: the largest centred part of the same shape

    def __post_init__(self) -> None:
        if self.resize not in _FILTERS or self.crop not in ("none", "center"):
            raise ValueError(f"{self}: resize must be one of {sorted(_FILTERS)}, crop none or center")
        if min(self.height, self.width) < 1:
            raise ValueError(f"Preprocessing {self}: height and width must be at least 1")


@dataclass(frozen=True)
class Limits:
    max_bytes: int
    max_pixels: int


def inspect(data: bytes, limits: Limits) -> None:
    """Refuse at the door, by the first bytes alone. Raises ImageError."""
    _check(data, limits)


def decode(data: bytes, contract: Contract, limits: Limits) -> Pixels:
    """Pixels uint8 [height, width, 3], RGB, C-contiguous. Raises ImageError."""
    kind = _check(data, limits)
    if kind == "JPEG" and contract.resize in _FAST_FILTERS:
        header = jpeg.read_header(data)
        if header.components in (1, 3) and header.precision == 8:
            try:
                return _decode_fast(data, header, contract)
            except ValueError:
                pass  # Pillow decides what is damaged and what is only untidy
    return _decode_pillow(data, kind, contract, limits)


def decode_plain(data: bytes, contract: Contract, limits: Limits) -> Pixels:
    """The same by Pillow alone: the reference that the fast path is held to."""
    return _decode_pillow(data, _check(data, limits), contract, limits)


def _check(data: bytes, limits: Limits) -> str:
    """Format of an image within the limits."""
    if not data:
        raise EmptyImage("The image is empty. Send the bytes of an image file.")
    if len(data) > limits.max_bytes:
        raise TooManyBytes(f"The image has {len(data)} bytes, {limits.max_bytes} are allowed. Send a smaller one.")
    kind = _sniff(data)
    try:
        width, height = _SIZES[kind](data)
    except (ValueError, struct.error, IndexError):
        raise UndecodableImage from None
    _check_size(width, height, limits)
    return kind


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise UndecodableImage
    allowed = min(limits.max_pixels, Image.MAX_IMAGE_PIXELS or limits.max_pixels)
    if width * height > allowed:
        raise TooManyPixels(f"The image has {width} x {height} pixels, {allowed} are allowed. Send a smaller one.")


def _sniff(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    raise UnsupportedImageType(f"The bytes are none of {', '.join(FORMATS)}. Send the image as one of these.")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    header = jpeg.read_header(data)
    if header.multiscan and data.count(b"\xff\xda") > _MAX_SCANS:
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
        raise ValueError("no VP8")
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _bmp_size(data: bytes) -> tuple[int, int]:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return width, abs(height)


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "WEBP": _webp_size, "BMP": _bmp_size, "GIF": _gif_size}


def _decode_fast(data: bytes, header: jpeg.Header, contract: Contract) -> Pixels:
    """libjpeg-turbo and fast_image_resize. ValueError for anything that is not flawless."""
    width, height = _stored_size(contract, header.orientation)
    pixels = simplejpeg.decode_jpeg(data, min_height=_OVERSAMPLING * height, min_width=_OVERSAMPLING * width)
    return _upright(_resize(pixels, width, height, contract), header.orientation)


_per_thread = threading.local()


def _resize(pixels: Pixels, width: int, height: int, contract: Contract) -> Pixels:
    resizer = getattr(_per_thread, "resizer", None)
    if resizer is None:
        resizer = _per_thread.resizer = fir.RustResizer()
    options = fir.RustResizeOptions().set_resize_alg(2, _FAST_FILTERS[contract.resize], 2).set_use_alpha(False)
    left, top, right, bottom = _box(pixels.shape[1], pixels.shape[0], width, height, contract)
    options = options.set_crop_box(left, top, right - left, bottom - top)
    source = fir.Image(pixels.shape[1], pixels.shape[0], 3, pixels.tobytes())
    target = fir.Image(width, height, 3, None)
    resizer.resize(source, target, options)
    return np.frombuffer(target.buffer(), np.uint8).reshape(height, width, 3)


def _decode_pillow(data: bytes, kind: str, contract: Contract, limits: Limits) -> Pixels:
    try:
        with Image.open(BytesIO(data), formats=[kind]) as image:
            _check_size(*image.size, limits)
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image)
        width, height = _stored_size(contract, orientation)
        box = _box(*rgb.size, width, height, contract)
        pixels = np.asarray(rgb.resize((width, height), _FILTERS[contract.resize], box))
    except ImageError:
        raise
    except Exception:
        raise UndecodableImage from None
    return _upright(pixels, orientation)


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif", b"")
    return jpeg.read_orientation(exif.removeprefix(b"Exif\0\0"))


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: 16-bit samples by their high byte, transparency over white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return image.convert("RGB")


def _stored_size(contract: Contract, orientation: int) -> tuple[int, int]:
    """Width and height before the orientation is applied: turning 224 x 224 pixels is cheaper than turning a photo."""
    return (contract.height, contract.width) if orientation >= 5 else (contract.width, contract.height)


def _box(w: float, h: float, width: int, height: int, contract: Contract) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is shown of a w x h image."""
    if contract.crop == "none":
        return 0, 0, w, h
    scale = min(w / width, h / height)
    left, top = (w - width * scale) / 2, (h - height * scale) / 2
    return left, top, left + width * scale, top + height * scale


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Exif orientation applied: 5 to 8 are transposed first, then the axes are mirrored."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    mirror = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    rows, columns = mirror.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels[::rows, ::columns])
