# ruff: noqa: N818  an exception is named after what is wrong with the upload
"""Uploaded bytes to the model's pixels: the one definition of preprocessing, shared by the service and `convert`.

JPEGs as cameras, phones and browsers write them take the fast path: libjpeg-turbo, at a reduced scale where the
contract's size allows, then a SIMD resize. All else goes through Pillow. Where a JPEG is decoded at full scale the two
differ by about 0.003 of 255 on average, at a reduced scale by about 0.3 on photos, by 1 to 4 on text and fine patterns.
"""

import struct
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from cykooz_resizer import rust_lib as fir  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image

from service import formats, jpeg

Pixels = NDArray[np.uint8]  # [height, width, 3], RGB
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
_FAST_FILTERS = {"bicubic": 3, "bilinear": 2, "box": 1}  # of fast_image_resize; 3 is Catmull-Rom, Pillow's bicubic
_CONVOLUTION, _RGB = 2, 3  # of fast_image_resize
_SCALES = (1, 2, 3, 4)  # eighths at which libjpeg-turbo is faster than at full scale; 5 to 7 are slower
# Times the contract's size that a reduced JPEG has at least: below it the resize would lose what it needs.
_OVERSAMPLING = {"bicubic": 2, "bilinear": 2, "box": 4}
_TURNS = {  # by Exif orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255)
_LONGEST = 65_535  # pixels of a side, as JPEG and GIF have it; Pillow's resize takes 32 bytes for each
_LARGE = 8_000_000  # pixels in memory, up to 8 bytes each; larger pictures are decoded one at a time
_one_large = threading.Lock()

warnings.simplefilter("error", Image.DecompressionBombWarning)


def _keep_freed_memory() -> None:
    """Spare each photo its page faults (250 and 0.6 ms at 500 x 375).

    glibc gives freed memory back at once, but for twice the largest block that it has seen freed. Here it sees 4 MB.
    """
    block = bytearray(4 << 20)
    del block


_keep_freed_memory()


class ImageError(ValueError):
    """An upload that gives no pixels: `status` is HTTP's, `code` is stable, the message names cause and remedy."""

    status: int
    code: str


class EmptyImage(ImageError):
    status, code = 400, "empty_image"


class TooManyBytes(ImageError):
    status, code = 413, "too_many_bytes"


class UnsupportedImageType(ImageError):
    status, code = 415, "unsupported_image_type"


class UndecodableImage(ImageError):
    status, code = 422, "undecodable_image"

    def __init__(self) -> None:
        super().__init__("The image is damaged, cut short or of a rare kind. Save it again as JPEG or PNG.")


class TooManyPixels(ImageError):
    status, code = 422, "too_many_pixels"


@dataclass(frozen=True)
class Contract:
    """How an image becomes the model's input: RGB, `height` x `width` pixels, Exif orientation applied."""

    height: int
    width: int
    resize: str = "bicubic"  # Pillow's filter of this name: bicubic, bilinear, box or nearest
    crop: str = "none"  # none: all of it, squeezed; center: the largest centred part of the contract's shape

    def __post_init__(self) -> None:
        if self.resize not in _FILTERS or self.crop not in ("none", "center"):
            raise ValueError(f"{self}: resize must be one of {', '.join(_FILTERS)}, crop none or center")
        if min(self.height, self.width) < 1:
            raise ValueError(f"{self}: height and width must be at least 1")


@dataclass(frozen=True)
class Limits:
    max_bytes: int
    max_pixels: int  # by the header; never more than Pillow's MAX_IMAGE_PIXELS


def inspect(data: bytes, limits: Limits) -> None:
    """Refuse at the door, before anything is decoded: mostly within a millisecond a megabyte, 7 at worst. Raises
    ImageError."""
    _admit(data, limits)


def decode(data: bytes, contract: Contract, limits: Limits) -> Pixels:
    """Pixels of an uploaded image, uint8 [height, width, 3], RGB, C-contiguous.

    Raises:
        ImageError: too large, of a type not taken, or damaged. A JPEG that ends before its last row is damaged.
    """
    kind = _admit(data, limits)
    header = jpeg.read_header(data) if kind == "JPEG" else None
    if header and _is_ordinary(header, contract):
        try:
            return _decode_fast(data, header, contract)
        except (ValueError, RuntimeError):  # not flawless: Pillow tells the untidy from the damaged
            pass
    return _decode_pillow(data, kind, contract, limits)


def decode_plain(data: bytes, contract: Contract, limits: Limits) -> Pixels:
    """The same by Pillow alone, which the fast path is held to."""
    return _decode_pillow(data, _admit(data, limits), contract, limits)


def _admit(data: bytes, limits: Limits) -> str:
    """Format of an image within the limits."""
    if not data:
        raise EmptyImage("The image has no bytes. Send the file itself.")
    if len(data) > limits.max_bytes:
        raise TooManyBytes(
            f"The image has {len(data)} bytes; at most {limits.max_bytes} are taken. Send a smaller one."
        )
    kind = formats.sniff(data)
    if kind is None:
        raise UnsupportedImageType("The bytes are no JPEG, PNG, WebP, BMP or GIF. Send the image as one of these.")
    try:
        size, weight = formats.read_size(kind, data), formats.weight(kind, data)
    except (ValueError, IndexError, struct.error):
        raise UndecodableImage from None
    _admit_size(*size, limits, weight)
    return kind


def _admit_size(width: int, height: int, limits: Limits, weight: int) -> None:
    if width < 1 or height < 1:
        raise UndecodableImage
    most = min(limits.max_pixels, Image.MAX_IMAGE_PIXELS or limits.max_pixels) // weight
    if width * height > most or max(width, height) > _LONGEST:
        raise TooManyPixels(
            f"The image has {width} x {height} pixels; at most {most} are taken{' of this kind' * (weight > 1)}, and"
            f" {_LONGEST} a side. Send a smaller one."
        )


def _is_ordinary(header: jpeg.Header, contract: Contract) -> bool:
    """Grey or three 8-bit colours, to be made smaller. Pillow enlarges as fast, and then the pixels are its own."""
    reduced = header.width > contract.width or header.height > contract.height
    return reduced and header.components in (1, 3) and header.precision == 8 and contract.resize in _FAST_FILTERS


def _decode_fast(data: bytes, header: jpeg.Header, contract: Contract) -> Pixels:
    """By libjpeg-turbo and fast_image_resize; ValueError or RuntimeError for anything that is not flawless."""
    turned = header.orientation >= 5
    width, height = (contract.height, contract.width) if turned else (contract.width, contract.height)
    eighths = _scale(header, width, height, contract)
    box = _box(header.width * eighths / 8, header.height * eighths / 8, width, height, contract)
    with _memory_for(header.width * header.height * eighths**2 // 64):
        pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-header.height * eighths // 8), min_width=-(-header.width * eighths // 8)
        )
        small = _resize(pixels, width, height, box, _FAST_FILTERS[contract.resize], columns_first=not turned)
    return small if header.orientation == 1 else np.asarray(_upright(Image.fromarray(small), header.orientation))


def _scale(header: jpeg.Header, width: int, height: int, contract: Contract) -> int:
    """Eighths of the stored size to decode at: the fewest that leave enough for the resize."""
    left, top, right, bottom = _box(header.width, header.height, width, height, contract)
    needed = 8 * _OVERSAMPLING[contract.resize] * max(width / (right - left), height / (bottom - top))
    return next((eighths for eighths in _SCALES if eighths >= needed), 8)


_thread = threading.local()


def _resize(pixels: Pixels, width: int, height: int, box: Box, filter_type: int, *, columns_first: bool) -> Pixels:
    """Along one axis and then along the other, rounded between, as Pillow does; what is turned later, the other way."""
    if not hasattr(_thread, "resizer"):  # a resizer is used by one thread at a time and keeps its buffers
        _thread.resizer = fir.RustResizer()
    h, w, _ = pixels.shape
    left, top, right, bottom = box
    if columns_first:
        steps = [(width, h, (left, 0, right - left, h)), (width, height, (0, top, width, bottom - top))]
    else:
        steps = [(w, height, (0, top, w, bottom - top)), (width, height, (left, 0, right - left, height))]
    options = fir.RustResizeOptions().set_resize_alg(_CONVOLUTION, filter_type, 0).set_use_alpha(False)
    source = fir.Image(w, h, _RGB, pixels.tobytes())
    for *size, crop in steps:
        target = fir.Image(*size, _RGB, None)
        _thread.resizer.resize(source, target, options.set_crop_box(*crop))
        source = target
    return np.frombuffer(source.buffer(), np.uint8).reshape(height, width, 3)


def _memory_for(pixels: int) -> AbstractContextManager[object]:
    return _one_large if pixels > _LARGE else nullcontext()


def _decode_pillow(data: bytes, kind: str, contract: Contract, limits: Limits) -> Pixels:
    try:
        with Image.open(BytesIO(formats.picture_only(kind, data)), formats=[kind]) as image:
            weight = formats.weight(kind, data)
            _admit_size(*image.size, limits, weight)
            with _memory_for(image.width * image.height * weight):
                image.load()
                if kind == "PNG":
                    _scale_transparency(image, depth=data[24])
                orientation = _orientation(image) if kind != "JPEG" else jpeg.read_header(data).orientation
                rgb = _upright(_to_rgb(image), orientation)
                size = (contract.width, contract.height)
                small = rgb.resize(size, _FILTERS[contract.resize], _box(*rgb.size, *size, contract))
                rgb.close()  # its memory is free before another large one begins
                return np.asarray(small)
    except ImageError:
        raise
    except Exception:  # Pillow's errors are of any type, and their text holds addresses
        raise UndecodableImage from None


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """The transparent grey or colour as Pillow scales samples of a PNG: of 16-bit colours the high byte."""
    given = image.info.get("transparency")
    if image.mode in {"1", "L"} and isinstance(given, int) and depth < 8:
        image.info["transparency"] = given * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and given:
        image.info["transparency"] = tuple(sample >> 8 for sample in given)


def _orientation(image: Image.Image) -> int:
    exif: bytes = image.info.get("exif", b"")
    return jpeg.read_orientation(exif.removeprefix(b"Exif\0\0"))


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode: of 16-bit samples the high byte, transparency over white."""
    if image.mode == "I;16":
        image = _high_byte(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else _converted(image, "RGBA")
        white = Image.new("RGB", image.size, _WHITE)
        white.paste(image, mask=image)
        image.close()
        return white
    return image if image.mode == "RGB" else _converted(image, "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """In another mode; the memory of the first is free again."""
    made = image.convert(mode)
    image.close()
    return made


def _high_byte(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    grey = Image.fromarray((samples >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(samples != image.info["transparency"]).convert("L"))
    return grey


def _box(w: float, h: float, width: int, height: int, contract: Contract) -> Box:
    """The part of a w x h image that becomes width x height."""
    if contract.crop == "none":
        return 0, 0, w, h
    scale = min(w / width, h / height)
    left, top = max(0.0, (w - width * scale) / 2), max(0.0, (h - height * scale) / 2)  # rounding gives -1e-15, too
    return left, top, w - left, h - top


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _TURNS:
        return picture
    turned = picture.transpose(_TURNS[orientation])
    picture.close()
    return turned
