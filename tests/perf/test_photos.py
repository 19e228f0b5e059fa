from email import message_from_bytes
from pathlib import Path

import pytest
from PIL import Image

from perf.photos import CONTENT_TYPE, load


def test_a_body_is_the_file_as_a_form(photos_dir: Path) -> None:
    for photo in load(photos_dir):
        message = message_from_bytes(f"Content-Type: {CONTENT_TYPE}\r\n\r\n".encode() + photo.body)
        (part,) = message.get_payload()
        assert part.get_content_type() == "image/jpeg"
        assert part.get_param("name", header="Content-Disposition") == "file"
        assert part.get_filename() == photo.name
        assert part.get_payload(decode=True) == (photos_dir / photo.name).read_bytes()


def test_made_photos_are_of_the_sizes_people_send(photos_dir: Path) -> None:
    sizes = {}
    for path in photos_dir.iterdir():
        with Image.open(path) as image:
            sizes[path.name] = image.size
    assert sizes == {"synthetic-500.jpg": (500, 375), "synthetic-1280.jpg": (1280, 1280)}


def test_a_folder_without_a_photo_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(ValueError, match=f"no photo .* in {tmp_path}: name a folder of photos with --photos"):
        load(tmp_path)
