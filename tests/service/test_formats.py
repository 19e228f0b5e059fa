"""Types and sizes by the first bytes, against what Pillow finds when it opens the file."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from service import formats, jpeg

SAVED = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "WEBP with exif": {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"},
    "BMP": {},
    "GIF": {},
}


def encode(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind.split()[0], **options)
    return file.getvalue()


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("size", [(1, 1), (301, 17), (16, 400), (16_383, 2)])
def test_type_and_size_are_those_of_the_file(kind, size):
    data = encode(noise(*size), kind, **SAVED[kind])
    assert formats.sniff(data) == kind.split()[0]
    assert formats.read_size(kind.split()[0], data) == size


@pytest.mark.parametrize("kind", SAVED)
def test_the_picture_alone_is_the_same_picture(kind):
    data = encode(noise(60, 40), kind, **SAVED[kind])
    alone = formats.picture_only(kind.split()[0], data)
    assert np.array_equal(*(np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in (data, alone)))


def test_texts_profiles_and_comments_are_not_part_of_the_picture():
    secret = b"a secret of some length"
    for kind, options in (
        ("JPEG", {"comment": secret}),
        ("PNG", {"icc_profile": secret}),
        ("GIF", {"comment": secret}),
    ):
        data = encode(noise(30, 20), kind, **options)
        assert len(formats.picture_only(kind, data)) < len(data)
        assert secret not in formats.picture_only(kind, data)


def test_a_gif_is_as_large_as_its_first_picture_reaches():
    data = bytearray(encode(noise(30, 20), "GIF"))
    start = data.index(b"\x2c\0\0\0\0")
    data[start + 1 : start + 5] = struct.pack("<HH", 100, 50)
    assert formats.read_size("GIF", bytes(data)) == (130, 70) == Image.open(io.BytesIO(data)).size


def test_a_gif_whose_extensions_hold_the_mark_of_a_picture_is_read_past_them():
    data = encode(noise(30, 20), "GIF", comment=b"," * 44)  # 44 is the mark and a length
    assert formats.read_size("GIF", data) == (30, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpegs_header_says_orientation_and_whether_it_has_several_scans(orientation):
    tags = Image.Exif()
    tags[0x010F], tags[0x0112] = "a camera", orientation
    for progressive in (False, True):
        header = jpeg.read_header(encode(noise(30, 20), "JPEG", exif=tags, progressive=progressive))
        assert header == (30, 20, 3, 8, orientation, progressive)


@pytest.mark.parametrize(("progressive", "scans"), [(False, 1), (True, 10)])
def test_scans_are_counted_up_to_the_end_of_the_picture(progressive, scans):
    data = encode(noise(30, 20), "JPEG", progressive=progressive)
    for whole in (data, data + b"\xff\xda" * 50, data[:2] + b"\xff\xfe\x00\x66" + b"\xff\xda" * 50 + data[2:]):
        assert jpeg.has_more_scans(whole, scans - 1)
        assert not jpeg.has_more_scans(whole, scans)


def tiff(entries):
    """A directory of so many entries, the last of which says orientation 6."""
    make, turned = struct.pack("<HHIHH", 0x010F, 3, 1, 0, 0), struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"II*\0" + struct.pack("<IH", 8, entries) + make * (entries - 1) + turned


@pytest.mark.parametrize(("entries", "orientation"), [(1, 6), (500, 6), (501, 1), (5000, 1)])
def test_orientation_is_sought_among_as_many_entries_as_cameras_write_and_some(entries, orientation):
    assert jpeg.read_orientation(tiff(entries)) == orientation


def test_only_the_first_exif_block_is_read():
    plain, turned = (b"Exif\0\0" + block for block in (b"II*\0" + struct.pack("<IH", 8, 0), tiff(1)))
    data = encode(noise(30, 20), "JPEG")
    segments = {block: b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block for block in (plain, turned)}
    assert jpeg.read_header(data[:2] + segments[turned] + segments[plain] + data[2:]).orientation == 6
    assert jpeg.read_header(data[:2] + segments[plain] + segments[turned] + data[2:]).orientation == 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    assert jpeg.read_orientation(b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, value, 0)) == 1


def gif(extensions, sub_blocks):
    """Comments of so many sub-blocks each, the empty one at the end among them, before one pixel."""
    comment = b"\x21\xfe" + b"\1x" * (sub_blocks - 1) + b"\0"
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + comment * extensions + picture


@pytest.mark.parametrize(("extensions", "sub_blocks"), [(0, 1), (99, 1), (1, 2000), (50, 40), (99, 20)])
def test_a_gif_may_have_99_extensions_and_2000_sub_blocks_in_all(extensions, sub_blocks):
    assert formats.read_size("GIF", gif(extensions, sub_blocks)) == (1, 1)


@pytest.mark.parametrize(("extensions", "sub_blocks"), [(100, 1), (1, 2001), (2, 1001), (50, 41), (99, 21), (99, 2000)])
def test_a_gif_with_more_is_refused(extensions, sub_blocks):
    with pytest.raises(ValueError, match="too many"):
        formats.read_size("GIF", gif(extensions, sub_blocks))
