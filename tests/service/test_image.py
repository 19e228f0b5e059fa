import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from service import image, jpeg
from service.image import Contract, ImageError, Limits, _box, decode, decode_plain, inspect
from service.model import Model

CONTRACT = Contract(224, 200)
LIMITS = Limits(max_bytes=16 << 20, max_pixels=40_000_000)
WHITE = (255, 255, 255)


def photo(width, height, mode="RGB"):
    """Blobs, a gradient, an edge and grain: what a photo has, from a fixed seed."""
    random = np.random.default_rng(width * 10_007 + height)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    pixels = np.asarray(coarse).astype(int) + random.integers(-6, 7, (height, width, 3))
    pixels[height // 3 :, width // 2 :] //= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def plainly(picture, contract=CONTRACT):
    """What the contract says, in Pillow's words."""
    return np.asarray(picture.convert("RGB").resize((contract.width, contract.height), Image.Resampling.BICUBIC))


def mean_difference(left, right):
    return np.abs(left.astype(int) - right).mean()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


ORDINARY = {
    "jpeg": encode(photo(500, 375), "JPEG", quality=90),
    "jpeg grey": encode(photo(500, 375, "L"), "JPEG"),
    "jpeg cmyk": encode(photo(300, 200, "CMYK"), "JPEG"),
    "jpeg progressive": encode(photo(500, 375), "JPEG", progressive=True),
    "jpeg small": encode(photo(64, 64), "JPEG"),
    "png": encode(photo(300, 200), "PNG"),
    "png grey": encode(photo(300, 200, "L"), "PNG"),
    "png bilevel": encode(photo(300, 200, "1"), "PNG"),
    "webp": encode(photo(300, 200), "WEBP", lossless=True),
    "webp lossy": encode(photo(300, 200), "WEBP"),
    "bmp": encode(photo(300, 200), "BMP"),
    "bmp grey": encode(photo(300, 200, "L"), "BMP"),
    "gif": encode(photo(300, 200, "P"), "GIF"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_an_image_of_every_type_gives_the_pixels_that_pillow_gives(name):
    pixels = decode(ORDINARY[name], CONTRACT, LIMITS)
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((224, 200, 3), np.uint8, True)
    assert mean_difference(pixels, plainly(Image.open(io.BytesIO(ORDINARY[name])))) < 0.5


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("tail", [b"\n", b"\0" * 64])
def test_what_follows_an_image_is_left_alone(name, tail):
    data = ORDINARY[name]
    assert np.array_equal(decode(data + tail, CONTRACT, LIMITS), decode(data, CONTRACT, LIMITS))


@pytest.mark.parametrize("resize", ["bicubic", "bilinear", "box", "nearest"])
@pytest.mark.parametrize("crop", ["none", "center"])
@pytest.mark.parametrize("size", [(2000, 1501), (1333, 1000), (901, 603), (500, 375), (300, 900), (225, 2), (64, 64)])
def test_the_fast_path_stays_within_half_a_level_of_pillow(resize, crop, size):
    contract = Contract(224, 224, resize, crop)
    for subsampling in (0, 2):
        data = encode(photo(*size), "JPEG", quality=90, subsampling=subsampling)
        assert mean_difference(decode(data, contract, LIMITS), decode_plain(data, contract, LIMITS)) < 0.5


def test_a_jpeg_decoded_at_full_scale_has_pillows_pixels_but_for_rounding():
    data = encode(photo(500, 375), "JPEG", quality=90)
    difference = np.abs(decode(data, CONTRACT, LIMITS).astype(int) - decode_plain(data, CONTRACT, LIMITS))
    assert difference.mean() < 0.01
    assert difference.max() <= 1


def test_the_fast_path_is_the_one_that_ordinary_jpegs_take(monkeypatch):
    monkeypatch.setattr(image, "_decode_pillow", lambda *_: pytest.fail("decoded by Pillow"))
    for name in ("jpeg", "jpeg grey", "jpeg progressive"):
        decode(ORDINARY[name], CONTRACT, LIMITS)


def test_an_enlarged_jpeg_has_exactly_pillows_pixels():
    data = encode(photo(64, 64), "JPEG")
    assert np.array_equal(decode(data, CONTRACT, LIMITS), plainly(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("resize", ["bicubic", "nearest"])
def test_exif_orientation_is_applied(kind, orientation, resize):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(photo(400, 300), kind, exif=exif(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    expected = upright.resize((200, 224), Image.Resampling[resize.upper()])
    assert mean_difference(decode(data, Contract(224, 200, resize), LIMITS), np.asarray(expected)) < 0.1


@pytest.mark.parametrize(("mark", "order"), [(b"II*\0", "<"), (b"MM\0*", ">")], ids=["little", "big"])
@pytest.mark.parametrize(("kind", "value"), [(3, "HH"), (4, "I")], ids=["short", "long"])
def test_orientation_is_read_in_either_byte_order_and_length(mark, order, kind, value):
    values = (6, 0)[: len(value)]
    tiff = mark + struct.pack(f"{order}IHHHI{value}I", 8, 1, 0x0112, kind, 1, *values, 0)
    assert jpeg.read_orientation(tiff) == 6
    assert jpeg.read_orientation(tiff[:-7]) == 1


def test_big_endian_exif_is_read_and_damaged_exif_is_left_alone():
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    plain = ORDINARY["jpeg"]
    turned = decode(with_segment(plain, 0xE1, b"Exif\0\0" + tiff), CONTRACT, LIMITS)
    assert mean_difference(turned, plainly(Image.open(io.BytesIO(plain)).transpose(Image.Transpose.ROTATE_270))) < 0.1
    for damaged in (tiff[:12], tiff[:4] + b"\xff" * 40, b"", b"II*\0"):
        data = with_segment(plain, 0xE1, b"Exif\0\0" + damaged)
        assert np.array_equal(decode(data, CONTRACT, LIMITS), decode(plain, CONTRACT, LIMITS))


def with_segment(data, marker, body):
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def test_cmyk_is_read_as_photoshop_and_libjpeg_write_it():
    ink = Image.new("CMYK", (300, 300), (0, 255, 255, 0))  # red
    ycck = simplejpeg.encode_jpeg(np.asarray(ImageOps.invert(ink.convert("RGB")).convert("CMYK")), colorspace="CMYK")
    assert mean_difference(decode(encode(ink, "JPEG"), CONTRACT, LIMITS), np.array([255, 0, 0])) < 3
    assert decode(ycck, CONTRACT, LIMITS).shape == (224, 200, 3)


def solid(mode, colour, kind, **options):
    return decode(encode(Image.new(mode, (300, 200), colour), kind, **options), CONTRACT, LIMITS)[100, 100].tolist()


def test_transparency_lies_over_white():
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert solid("RGBA", (255, 0, 0, 0), kind, **options) == [255, 255, 255]
        assert solid("RGBA", (255, 0, 0, 255), kind, **options) == [255, 0, 0]
        assert solid("RGBA", (200, 0, 0, 128), kind, **options) == pytest.approx([227, 127, 127], abs=1)
    assert solid("LA", (0, 51), "PNG") == [204, 204, 204]
    assert solid("RGB", (1, 2, 3), "PNG", transparency=(1, 2, 3)) == [255, 255, 255]
    assert solid("L", 7, "PNG", transparency=7) == [255, 255, 255]
    assert solid("P", 0, "GIF", transparency=0) == [255, 255, 255]


def test_a_palette_is_looked_up_and_its_transparency_lies_over_white():
    picture = Image.new("P", (300, 200), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encode(picture, "PNG"), CONTRACT, LIMITS)[0, 0].tolist() == [10, 20, 30]
    half = encode(picture, "PNG", transparency=bytes([255, 128]))
    assert decode(half, CONTRACT, LIMITS)[0, 0].tolist() == pytest.approx([132, 137, 142], abs=1)


def png(width, height, depth, colour, rows, *, interlace=0, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(("colour", "sample"), [(0, [0x1234]), (2, [0x12FF, 0x34FF, 0x56FF])])
def test_of_16_bit_samples_the_high_byte_counts(colour, sample):
    rows = (b"\0" + struct.pack(f">{len(sample)}H", *sample) * 10) * 10
    expected = [value >> 8 for value in sample] * (3 // len(sample))
    assert decode(png(10, 10, 16, colour, rows), CONTRACT, LIMITS)[5, 5].tolist() == expected


@pytest.mark.parametrize(("colour", "sample"), [(4, [0x1234, 0]), (6, [1, 2, 3, 0])])
def test_16_bit_alpha_lies_over_white(colour, sample):
    rows = (b"\0" + struct.pack(f">{len(sample)}H", *sample) * 10) * 10
    assert decode(png(10, 10, 16, colour, rows), CONTRACT, LIMITS)[5, 5].tolist() == [255, 255, 255]


def test_a_16_bit_transparent_grey_lies_over_white():
    rows = (b"\0" + struct.pack(">H", 0x1234) * 10) * 10
    transparent = chunk(b"tRNS", struct.pack(">H", 0x1234))
    assert decode(png(10, 10, 16, 0, rows, extra=transparent), CONTRACT, LIMITS)[5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "transparent"),
    [
        (1, 0, b"\xff\xff", [1]),
        (2, 0, b"\x55" * 3, [1]),
        (4, 0, b"\x11" * 5, [1]),
        (16, 2, bytes(range(6)) * 10, [0x0001, 0x0203, 0x0405]),
    ],
)
def test_what_a_png_says_is_transparent_lies_over_white_at_any_depth(depth, colour, row, transparent):
    extra = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    data = png(10, 10, depth, colour, (b"\0" + row) * 10, extra=extra)
    assert decode(data, CONTRACT, LIMITS)[5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("where", ["behind", "before"])
def test_a_progressive_jpeg_is_taken_whatever_else_its_file_holds(where):
    other, data = np.random.default_rng(0).bytes(3_000_000), encode(photo(300, 200), "JPEG", progressive=True)
    segments = [b"\xff\xe2\xff\xff" + other[at : at + 65_533] for at in range(0, 45 * 65_533, 65_533)]
    whole = data + other if where == "behind" else data[:2] + b"".join(segments) + data[2:]
    assert np.array_equal(decode(whole, CONTRACT, LIMITS), decode(data, CONTRACT, LIMITS))


def test_an_interlaced_png_is_the_same_picture():
    pixels = np.asarray(photo(65, 50))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # Adam7
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in pixels[y::dy, x::dx])
    assert np.array_equal(decode(png(65, 50, 8, 2, rows, interlace=1), CONTRACT, LIMITS), plainly(photo(65, 50)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(kind):
    frames = [Image.new("RGB", (300, 200), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data, CONTRACT, LIMITS)[100, 100].tolist() == [255, 0, 0]


def test_a_bmp_from_the_top_and_one_with_the_oldest_header_are_read():
    data = bytearray(encode(photo(300, 200), "BMP"))
    data[22:26] = struct.pack("<i", -200)
    assert np.array_equal(decode(bytes(data), CONTRACT, LIMITS), plainly(photo(300, 200).transpose(1)))
    core = b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26, 12, 2, 1, 1, 24) + b"\x03\x02\x01\x03\x02\x01\0\0"
    assert decode(core, CONTRACT, LIMITS)[0, 0].tolist() == [1, 2, 3]


def test_a_picture_as_a_phone_sends_it_is_not_disturbed_by_what_is_around_it():
    data = ORDINARY["jpeg cmyk"]  # by Pillow
    noisy = data
    for marker, body in (
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        (0xE2, b"MPF\0" + b"\xff" * 90),
        (0xFE, b"\xff"),
    ):
        noisy = with_segment(noisy, marker, body)
    assert np.array_equal(decode(noisy, CONTRACT, LIMITS), decode(data, CONTRACT, LIMITS))
    filled = data[:2] + b"\xff\xff" + data[2:]  # fill bytes before a marker
    assert np.array_equal(decode(filled, CONTRACT, LIMITS), decode(data, CONTRACT, LIMITS))


def test_the_centre_crop_keeps_the_middle_and_its_proportions():
    data = encode(photo(400, 300), "PNG")
    expected = photo(400, 300).crop((50, 0, 350, 300)).resize((150, 150), Image.Resampling.BICUBIC)
    pixels = decode(data, Contract(150, 150, crop="center"), LIMITS)
    assert mean_difference(pixels, np.asarray(expected)) < 0.5


@pytest.mark.parametrize("side", [224, 299, 331])
def test_the_centre_crop_lies_within_every_photo(side: int) -> None:
    contract = Contract(side, side, crop="center")
    for width in range(1, 600):
        left, top, right, bottom = _box(width, 2, side, side, contract)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= 2
    assert decode(encode(photo(225, 300), "PNG"), contract, LIMITS).shape == (side, side, 3)


def test_a_cropped_and_turned_jpeg_is_cropped_upright():
    data = encode(photo(900, 600), "JPEG", exif=exif(6), quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    contract = Contract(100, 200, crop="center")
    expected = upright.crop((0, 300, 600, 600)).resize((200, 100), Image.Resampling.BICUBIC)
    assert mean_difference(decode(data, contract, LIMITS), np.asarray(expected)) < 0.5


REFUSED = {
    "nothing": (b"", 400, "empty_image"),
    "too many bytes": (b"\xff\xd8\xff" + bytes(16 << 20), 413, "too_many_bytes"),
    "text": (b"GET / HTTP/1.1", 415, "unsupported_image_type"),
    "tiff": (encode(photo(30, 20), "TIFF"), 415, "unsupported_image_type"),
    "a signature alone": (b"\xff\xd8\xff", 422, "undecodable_image"),
    "png without a header": (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b""), 422, "undecodable_image"),
    "no pixels": (png(0, 10, 8, 2, b""), 422, "undecodable_image"),
    "png too large": (png(20_000, 20_000, 8, 2, b""), 422, "too_many_pixels"),
    "webp too large": (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6, 422, "too_many_pixels"),
    "png too long": (png(65_536, 1, 8, 2, b""), 422, "too_many_pixels"),
    "png too high": (png(1, 65_536, 8, 2, b""), 422, "too_many_pixels"),
    "gif too large": (b"GIF89a\xff\xff\xff\xff\0\0\0\x2c" + bytes(9), 422, "too_many_pixels"),
    "bmp too large": (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 9999, -9999, 1, 24, 0), 422, "too_many_pixels"),
    "run-length bmp": (b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 9, 9, 1, 8, 1), 422, "undecodable_image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_door_refuses_by_the_header_with_a_stable_code(name):
    data, status, code = REFUSED[name]
    for refuse in (lambda: inspect(data, LIMITS), lambda: decode(data, CONTRACT, LIMITS)):
        with pytest.raises(ImageError) as refused:
            refuse()
        assert (refused.value.status, refused.value.code) == (status, code)
        assert " object at 0x" not in str(refused.value)
        assert str(refused.value).endswith(".")


def test_the_door_decodes_nothing(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    for data in ORDINARY.values():
        inspect(data, LIMITS)


def test_pillows_own_pixel_limit_is_never_lifted():
    with pytest.raises(ImageError) as refused:
        inspect(png(10_000, 9_500, 8, 2, b""), Limits(1 << 30, 1 << 40))
    assert refused.value.code == "too_many_pixels"


@pytest.mark.parametrize(
    ("mode", "kind", "options"), [("RGB", "WEBP", {}), ("CMYK", "JPEG", {"progressive": True})], ids=["webp", "jpeg"]
)
def test_half_as_many_pixels_are_taken_of_what_takes_twice_the_memory(mode, kind, options):
    data, pixels = encode(Image.new(mode, (100, 80)), kind, **options), 100 * 80
    inspect(data, Limits(1 << 20, 2 * pixels))
    with pytest.raises(image.TooManyPixels, match="100 x 80 pixels; at most 7999 are taken of this kind"):
        inspect(data, Limits(1 << 20, 2 * pixels - 1))


def test_a_jpeg_that_ends_early_is_damaged_and_one_that_is_only_untidy_is_not():
    for name in ("jpeg", "jpeg progressive", "jpeg small", "jpeg cmyk"):
        data = ORDINARY[name]
        with pytest.raises(image.UndecodableImage):
            decode(data[: len(data) // 2], CONTRACT, LIMITS)
        assert decode(data + b"appended by a camera", CONTRACT, LIMITS).shape == (224, 200, 3)


def test_a_contract_that_nobody_can_keep_is_refused():
    for wrong in ({"resize": "lanczos"}, {"crop": "left"}, {"height": 0}):
        with pytest.raises(ValueError, match="must be"):
            Contract(**({"height": 224, "width": 224} | wrong))


def test_many_threads_get_the_pixels_that_one_gets():
    expected = {name: decode(data, CONTRACT, LIMITS) for name, data in ORDINARY.items()}
    wrong = []

    def work():
        for _ in range(5):
            wrong.extend(
                name for name, data in ORDINARY.items() if (decode(data, CONTRACT, LIMITS) != expected[name]).any()
            )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decoding_lets_other_threads_run(kind):
    options = {"progressive": True} if kind == "JPEG" else {"compress_level": 1}
    data = encode(photo(3000, 2000), kind, **options)
    assert min(longest_stall(data) for _ in range(5)) < 0.5  # the best of a few: the machine has other work


def longest_stall(data):
    """The longest pause of another thread while an image is decoded, as a share of the decoding."""
    stalls, done = [0.0], threading.Event()

    def tick():
        last = time.perf_counter()
        while not done.wait(0.0005):
            now = time.perf_counter()
            stalls.append(now - last)
            last = now

    other = threading.Thread(target=tick)
    other.start()
    begun = time.perf_counter()
    try:
        decode(data, CONTRACT, Limits(1 << 30, 40_000_000))
        return max(stalls) / (time.perf_counter() - begun)
    finally:
        done.set()
        other.join()


def test_importing_it_brings_in_no_other_image_or_model_library():
    program = "import sys, service.image; print([m for m in ('cv2', 'onnxruntime', 'litestar') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert found.stdout.strip() == "[]"


def shared(name):
    folder = Path(os.environ.get("PERF_SHARED") or Path(__file__).parents[3] / "shared") / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs {name} in the shared data (PERF_SHARED)")
    return sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".jpeg"))


def test_the_evaluation_photos_give_exactly_pillows_pixels():
    contract = Contract(224, 224)
    photos = [path.read_bytes() for path in shared("food11-64/evaluation")]
    different = [
        data for data in photos if (decode(data, contract, LIMITS) != decode_plain(data, contract, LIMITS)).any()
    ]
    assert len(photos) > 3000
    assert different == []


def test_the_full_size_photos_give_pillows_pixels_within_half_a_level():
    for path in shared("photos"):
        data = path.read_bytes()
        for contract in (Contract(224, 224), Contract(224, 224, crop="center"), Contract(331, 331, "bilinear")):
            assert mean_difference(decode(data, contract, LIMITS), decode_plain(data, contract, LIMITS)) < 0.5


def test_every_package_gives_the_full_size_photos_the_same_answer_by_either_path():
    files = sorted((Path(__file__).parents[2] / "models").glob("*/*/model.onnx"))
    if not files:
        pytest.skip("needs packages in models/")
    for model in (Model(file, intra_op_threads=1) for file in files):
        for path in shared("photos"):
            data, contract = path.read_bytes(), model.metadata.contract
            both = np.stack([decode(data, contract, LIMITS), decode_plain(data, contract, LIMITS)])
            fast, plain = model.infer(both)
            assert np.abs(fast - plain).max() < 0.05
            assert fast.argmax() == plain.argmax()
