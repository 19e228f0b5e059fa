"""Uploads that are broken, hostile or merely odd, from fixed seeds: pixels or a refusal, soon and in little memory."""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.__main__ import MALLOC
from service.image import Contract, ImageError, Limits, decode
from tests.service.packages import jpeg

CONTRACT = Contract(224, 224)
LIMITS = Limits(max_bytes=4 << 20, max_pixels=4_000_000)
FLIPS = 60  # damaged copies of each file


def photo(width, height, mode="RGB"):
    noise = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    coarse = Image.fromarray(noise).resize((width // 8 + 1, height // 8 + 1)).resize((width, height))
    return coarse.convert(mode)


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_png_chunks(*chunks):
    data = encode(photo(60, 40), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def exif():
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "a camera"
    return tags.tobytes()


GOOD = {
    "jpeg": encode(photo(640, 480), "JPEG", exif=exif()),
    "jpeg progressive": encode(photo(300, 200), "JPEG", progressive=True),
    "jpeg grey": encode(photo(300, 200, "L"), "JPEG"),
    "jpeg cmyk": encode(photo(120, 80, "CMYK"), "JPEG"),
    "jpeg small": encode(photo(64, 64), "JPEG"),
    "png": encode(photo(120, 80), "PNG", exif=exif()),
    "png palette": encode(photo(120, 80, "P"), "PNG", transparency=bytes(range(256))),
    "png alpha": encode(photo(120, 80, "RGBA"), "PNG"),
    "png 16 bit": encode(Image.fromarray(np.arange(9600, dtype=np.uint16).reshape(80, 120)), "PNG"),
    "webp": encode(photo(120, 80), "WEBP", exif=exif()),
    "webp lossless": encode(photo(120, 80, "RGBA"), "WEBP", lossless=True),
    "webp animated": encode(photo(60, 40), "WEBP", save_all=True, append_images=[photo(60, 40).rotate(90)]),
    "bmp": encode(photo(60, 40), "BMP"),
    "bmp palette": encode(photo(60, 40, "P"), "BMP"),
    "gif": encode(photo(120, 80, "P"), "GIF", transparency=3),
    "gif animated": encode(
        photo(60, 40), "GIF", save_all=True, append_images=[photo(60, 40).rotate(90)], comment=b"x" * 300
    ),
}


def extremes():
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
        for size in ((1, 1), (1, 16_383 if kind == "WEBP" else 20_000), (16_383, 1)):
            yield f"{kind} {size[0]}x{size[1]}", encode(Image.new("RGB", size, (9, 99, 199)), kind)


def bombs():
    """Small files that would cost much: within the limits on bytes and, by what they claim, mostly on pixels."""
    empty_scan = bytes.fromhex("ffda0008010100010500")
    progressive = encode(photo(1900, 1900), "JPEG", progressive=True)
    yield "jpeg of scans", progressive[:-2] + empty_scan * 3000 + b"\xff\xd9"
    hidden = b"\xff\x01\xff\xff" + empty_scan * 3000  # behind TEM, which has no length: no segment is passed over
    yield "jpeg of hidden scans", progressive[:-2] + hidden + b"\xff\xd9"
    yield "jpeg of empty segments", b"\xff\xd8" + b"\xff\xe1\0\2" * 900_000
    yield "jpeg of fill bytes", b"\xff\xd8" + b"\xff" * 3_000_000
    yield "png of zeros", encode(Image.new("RGBA", (2000, 2000)), "PNG")
    yield "png that claims less than it holds", b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)),
         chunk(b"IDAT", zlib.compress(bytes(200_000_000), 1)), chunk(b"IEND", b""))
    )  # fmt: skip
    yield "png of texts", with_png_chunks(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 60)
    yield "png with a large profile", with_png_chunks(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000))))
    yield "png of empty chunks", with_png_chunks(*[chunk(b"IDAT", b"")] * 300_000)
    yield "png that says it is animated", with_png_chunks(chunk(b"acTL", bytes(8)), chunk(b"fcTL", b"\xff" * 26))
    yield "png huge by its header", with_png_chunks()[:16] + b"\x7f\xff\xff\xff" * 2 + with_png_chunks()[24:]
    yield "webp of one colour", encode(Image.new("RGBA", (1400, 1400)), "WEBP", lossless=True)
    webp = GOOD["webp animated"]
    yield "webp huge by its header", webp[:24] + b"\xff" * 6 + webp[30:]
    yield "gif of one colour", encode(Image.new("P", (2000, 2000)), "GIF")
    gif = GOOD["gif animated"]
    picture = gif.index(b"\x2c")
    yield "gif of tiny comments", b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe" + b"\1x" * 1_500_000 + b"\0" + gif[picture:]
    yield "gif of extensions", b"GIF89a\1\0\1\0\0\0\0" + b"\x21\xfe\0" * 1_000_000 + gif[picture:]
    many = (b"\x21\xfe" + b"\1x" * 1999 + b"\0") * 99
    yield "gif of extensions of many comments", b"GIF89a\1\0\1\0\0\0\0" + many + gif[picture:]
    yield "gif whose picture is larger than its screen", gif[: picture + 5] + b"\xff" * 4 + gif[picture + 9 :]
    for name, fields in BMP_HEADERS.items():
        yield f"bmp {name}", b"BM" + bytes(8) + b"\x36\0\0\0" + struct.pack("<IiiHHI", *fields) + bytes(3_000_000)


BMP_HEADERS = {  # size of the header, width, height, planes, bits a pixel, compression
    "huge": (40, 2**31 - 1, 2**31 - 1, 1, 24, 0),
    "negative": (40, -5, -5, 1, 24, 0),
    "run-length": (40, 1900, 1900, 1, 8, 1),
    "of a strange depth": (40, 5, 5, 1, 7, 0),
    "with a header of 4 GB": (2**32 - 1, 5, 5, 1, 24, 0),
    "of planes": (40, 5, 5, 9, 32, 3),
}


def foreign():
    yield "nothing", b""
    yield "a zero byte", b"\0"
    yield "zero bytes", bytes(1000)
    for kind in ("TIFF", "PPM", "ICO", "TGA", "JPEG2000", "PDF"):
        yield kind.lower(), encode(photo(32, 32), kind)
    yield "html", b"<!doctype html><img src=x>"
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    for name, data in GOOD.items():
        yield f"the signature of {name}", data[:12]


def damaged():
    for name, data in GOOD.items():
        for tenth in range(1, 10):
            yield f"{name} cut at {tenth}/10", data[: len(data) * tenth // 10]
        chance = random.Random(name)
        for seed in range(FLIPS):
            copy = bytearray(data)
            for _ in range(chance.choice((1, 3, 20))):
                copy[chance.randrange(len(copy) if seed % 2 else min(200, len(copy)))] ^= 1 << chance.randrange(8)
            yield f"{name} flipped {seed}", bytes(copy)


CORPUS = {**dict(extremes()), **dict(bombs()), **dict(foreign()), **dict(damaged())}
KINDS = sorted({name.split()[0].lower() for name in CORPUS})


def attempt(data):
    """Pixels, or the refusal; and the seconds it took."""
    begun = time.perf_counter()
    try:
        outcome = decode(data, CONTRACT, LIMITS)
    except ImageError as error:
        outcome = error
    return outcome, time.perf_counter() - begun


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_gives_pixels_or_an_image_error_without_warnings_and_soon(kind):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name, data in CORPUS.items():
            if name.split()[0].lower() != kind:
                continue
            outcome, seconds = attempt(data)
            if isinstance(outcome, ImageError):
                assert outcome.status in (400, 413, 415, 422), name
                assert " object at 0x" not in str(outcome), name
            else:
                assert (outcome.shape, outcome.dtype) == ((224, 224, 3), np.uint8), name
            assert seconds < 2, name
    assert [str(each.message) for each in warned] == []


def truncated():
    """Name, bytes and the whole picture's pixels: cut at every tenth, and by each of the last 40 bytes."""
    for name, data in GOOD.items():
        whole = decode(data, CONTRACT, LIMITS)
        for length in [len(data) * tenth // 10 for tenth in range(1, 10)] + [len(data) - n for n in range(1, 41)]:
            yield name, data[:length], whole


# Bytes that follow a file's first picture: where no more is cut off, the pixels are all there.
AFTER_THE_PICTURE = {"gif animated": len(GOOD["gif animated"]) - GOOD["gif animated"].rindex(b"\x21\xf9"), "gif": 2}
AFTER_THE_PICTURE |= dict.fromkeys([name for name in GOOD if name.startswith("png")], 22)  # end mark, sums, IEND


def test_a_file_that_is_cut_short_is_refused_unless_its_picture_is_whole():
    for name, data, whole in truncated():
        outcome, _ = attempt(data)
        missing = len(GOOD[name]) - len(data)
        if isinstance(outcome, ImageError):
            assert outcome.code == "undecodable_image", (name, missing)
        else:
            assert missing <= AFTER_THE_PICTURE.get(name, 0), (name, missing)
            assert np.array_equal(outcome, whole), (name, missing)


HARMLESS = (
    "png of texts",
    "png with a large profile",
    "png that says it is animated",
    "png of zeros",
    "webp of one colour",
)


def test_what_lies_around_a_picture_does_not_spoil_it():
    for name in HARMLESS:
        assert not isinstance(attempt(CORPUS[name])[0], ImageError), name


def test_bombs_are_refused():
    for name in (
        "jpeg of scans",
        "jpeg of hidden scans",
        "jpeg of empty segments",
        "png huge by its header",
        "gif of tiny comments",
        "gif of extensions of many comments",
        "bmp huge",
    ):
        assert isinstance(attempt(CORPUS[name])[0], ImageError), name


PEAK = """
import pickle, sys
from service.image import Contract, ImageError, Limits, decode
small, files = pickle.load(open(sys.argv[1], "rb"))
peak_mb = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024  # since exec
def attempt(data):
    try:
        decode(data, Contract(224, 224), Limits(4 << 20, 4_000_000))
    except ImageError:
        pass
for data in small:
    attempt(data)
before = peak_mb()
for data in files:
    attempt(data)
print(peak_mb() - before)
"""


def test_no_file_takes_more_memory_than_its_pixels_need(tmp_path: Path) -> None:
    large = [encode(photo(2000, 2000), kind) for kind in ("PNG", "BMP")]
    large.append(encode(photo(1400, 1400, "RGBA"), "WEBP"))  # its limit is half of the others'
    progressive = encode(photo(2000, 2000), "JPEG", progressive=True, subsampling=0)
    files = [data for name, data in CORPUS.items() if "flipped" not in name] + large + [progressive]
    (tmp_path / "files").write_bytes(pickle.dumps((list(GOOD.values()), files)))
    found = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "files"], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 4 * 24  # MB: 4 million pixels of at most 24 bytes


def test_large_pictures_are_decoded_one_at_a_time_in_at_most_eight_bytes_a_pixel(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    large = [encode(Image.new(mode, (4000, 3000)), "PNG", exif=exif) for mode in ("LA", "RGBA", "RGB")]
    large.append(encode(Image.new("CMYK", (4000, 3000)), "JPEG"))
    large.append(encode(Image.new("RGB", (3000, 2000)), "WEBP", exif=exif))  # its limit is half of the others'
    large.append(encode(Image.new("CMYK", (3000, 2000)), "JPEG", progressive=True))
    large.append(encode(Image.new("L", (60_000, 200)), "PNG"))
    large.append(encode(Image.new("L", (200, 60_000)), "PNG"))
    (tmp_path / "files").write_bytes(pickle.dumps((list(GOOD.values()), large * 2)))
    at_once = PEAK.replace("4 << 20, 4_000_000", "1 << 28, 12_000_000").replace(
        "for data in files:\n    attempt(data)",
        "from concurrent.futures import ThreadPoolExecutor\nlist(ThreadPoolExecutor(4).map(attempt, files))",
    )
    command = [sys.executable, "-c", at_once, tmp_path / "files"]
    found = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True)
    assert 12 < float(found.stdout) < 12 * 8 + 30  # MB, buffers of four threads


CODES = {400: {"empty_image"}, 413: {"too_many_bytes", "request_too_large"}, 415: {"unsupported_image_type"}}
CODES[422] = {"undecodable_image", "too_many_pixels"}


def test_the_service_answers_bad_uploads_with_problem_details_and_good_ones_beside_them(server):
    def post(data):
        return client.post("/predict", content=data, headers={"content-type": "image/jpeg"})

    def check(entry):
        name, data = entry
        answer = post(data)
        if "cut at" in name and not name.startswith("gif animated"):  # its first picture may be whole
            assert answer.status_code == 422, name
        if answer.status_code != 200:
            assert answer.json()["code"] in CODES[answer.status_code], name
            assert answer.headers["content-type"] == "application/problem+json", name
        good = post(jpeg("green"))
        assert good.json()["predictions"][0]["label"] == "green", name
        return answer.status_code

    with httpx.Client(base_url=server.url, timeout=20) as client, ThreadPoolExecutor(4) as pool:
        statuses = set(pool.map(check, CORPUS.items()))
    assert statuses == {200, *CODES}
