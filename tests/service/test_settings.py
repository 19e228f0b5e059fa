"""Settings, and the README that lists them."""

import subprocess
import sys

import pytest

from service.settings import Settings, SettingsError, markdown_table, read_settings
from tests.service.running import CHECKOUT


def test_without_variables_every_setting_has_its_default() -> None:
    assert read_settings({"HOME": "/root"}) == Settings()


def test_variables_are_read_by_type() -> None:
    given = {"SOUS_MODELS_DIR": "/m", "SOUS_MAX_QUEUE_SIZE": "7", "SOUS_MAX_FILES": "2"}
    assert read_settings(given) == Settings(models_dir="/m", max_queue_size=7, max_files=2)


def test_an_unknown_setting_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting SOUS_MAX_QUEUESIZE; did you mean SOUS_MAX_QUEUE_SIZE"):
        read_settings({"SOUS_MAX_QUEUESIZE": "7"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOUS_TOP_K", "0"),
        ("SOUS_TOP_K", "many"),
        ("SOUS_TOP_K", "1.5"),
        ("SOUS_TOP_K", ""),
        ("SOUS_SLOTS", "-1"),
        ("SOUS_INTRA_OP_THREADS", "1025"),
        ("SOUS_MAX_BATCH_SIZE", "1025"),
        ("SOUS_MAX_IMAGE_PIXELS", "89478486"),  # Pillow's own limit and one
        ("SOUS_MODELS_DIR", ""),
        ("SOUS_MAX_QUEUE_DELAY_US", "999999999999999999"),
        ("SOUS_REQUEST_TIMEOUT_MS", "9" * 400),
        ("SOUS_MAX_FILES", "200"),  # more than max_queue_size: such a request could never be queued
        ("SOUS_MAX_HELD_BYTES", str(32 * 1024**2 - 1)),  # less than max_request_bytes: such a body could never be read
        ("SOUS_MAX_REQUEST_BYTES", str(1024**3)),
        ("SOUS_MAX_IMAGE_BYTES", str(1024**3)),
    ],
)
def test_a_value_out_of_type_or_range_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"bad setting: .*{name}.*; `python -m service\.settings` lists all"):
        read_settings({name: value})


def test_every_setting_stands_in_the_readme_as_it_is() -> None:
    assert markdown_table() in (CHECKOUT / "README.md").read_text()


def test_the_table_is_printed_by_a_command() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "service.settings"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert printed.stdout == markdown_table()
    assert printed.stdout.count("\n") == len(Settings.__struct_fields__) + 2
