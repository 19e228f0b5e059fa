"""Settings: `SOUS_*` environment variables, typed; one that is unknown or out of range is refused."""

import difflib
import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, get_type_hints

import msgspec

PREFIX = "SOUS_"
MOST = 2**40  # of any number: a terabyte, 34 years in milliseconds
MOST_THREADS = 1024  # of a session's threads, slots and images of a run, too: each costs memory and time at the start
MOST_PIXELS = 89_478_485  # above it Pillow takes a picture for an attack


class SettingsError(ValueError):
    """An environment variable that cannot be what was meant."""


def _count(description: str, least: int = 1, most: int = MOST) -> Any:
    return msgspec.Meta(ge=least, le=most, description=description)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be set. A number's unit ends its name; 0 leaves a choice to the plan."""

    models_dir: Annotated[str, msgspec.Meta(min_length=1, description="folder of packages, `NAME/VERSION/`")] = "models"
    default_model: Annotated[
        str, msgspec.Meta(description="model of a request that names none; empty: the first by name")
    ] = ""
    top_k: Annotated[int, _count("labels in an answer unless the request says `top_k`")] = 5
    cores: Annotated[
        int, _count("cores of one worker; 0: cgroup quota and affinity, shared by the workers", 0, MOST_THREADS)
    ] = 0
    slots: Annotated[int, _count("batches a model may run at once; 0: by the plan", 0, MOST_THREADS)] = 0
    intra_op_threads: Annotated[int, _count("threads of one session run; 0: by the plan", 0, MOST_THREADS)] = 0
    max_batch_size: Annotated[int, _count("images of one session run; 0: by the plan", 0, MOST_THREADS)] = 0
    max_queue_delay_us: Annotated[int, _count("longest wait of an image for its batch to fill", 0)] = 0
    max_queue_size: Annotated[int, _count("images that may wait for a model; beyond it 429")] = 128
    request_timeout_ms: Annotated[
        int, _count("longest time of a request; it may ask for less by `X-Request-Timeout-Ms`")
    ] = 10_000
    max_image_bytes: Annotated[int, _count("largest photo")] = 16 * 1024**2
    max_image_pixels: Annotated[
        int, _count("most pixels of a photo, by its header; half as many of a WebP", most=MOST_PIXELS)
    ] = 40_000_000
    max_request_bytes: Annotated[int, _count("largest multipart body")] = 32 * 1024**2
    max_held_bytes: Annotated[int, _count("bodies of all requests in a worker; beyond it 429")] = 128 * 1024**2
    max_files: Annotated[int, _count("most photos in a request")] = 16
    drain_delay_ms: Annotated[int, _count("from SIGTERM, when readiness fails, until the door closes", 0)] = 1000

    def __post_init__(self) -> None:
        if self.max_files > self.max_queue_size:
            raise ValueError(f"max_files {self.max_files} is more than max_queue_size {self.max_queue_size}")
        if self.max_held_bytes < max(self.max_request_bytes, self.max_image_bytes):
            raise ValueError(
                f"max_held_bytes {self.max_held_bytes} is less than max_request_bytes {self.max_request_bytes} "
                f"or max_image_bytes {self.max_image_bytes}"
            )


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: a name nobody knows (with the nearest known one), or a value out of type or range.
    """
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
    known = {PREFIX + field.upper(): field for field in Settings.__struct_fields__}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"unknown setting {name}{hint} `python -m service.settings` lists all")
    try:
        return msgspec.convert({known[name]: value for name, value in given.items()}, Settings, strict=False)
    except msgspec.ValidationError as error:
        fields = "|".join(Settings.__struct_fields__)
        said = re.sub(rf"(?:\$\.)?\b({fields})\b", lambda found: PREFIX + found[1].upper(), str(error))
        raise SettingsError(f"bad setting: {said}; `python -m service.settings` lists all") from None


def markdown_table() -> str:
    """The README's settings table: one row a setting, in their order here."""
    hints = get_type_hints(Settings, include_extras=True)
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, default in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True):
        shown = f"`{default}`" if default != "" else "(empty)"
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {hints[name].__metadata__[0].description} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())
