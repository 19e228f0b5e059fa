"""`python -m service [gunicorn's options]`: the service by gunicorn and its configuration here.

`--port N` is short for `--bind 127.0.0.1:N`.
"""

import os
import sys

from service.settings import SettingsError, read_settings

HELP = """usage: python -m service [--port N | --bind ADDRESS:PORT] [gunicorn's options]

Serves every package in SOUS_MODELS_DIR (models). `python -m service.settings` lists the settings,
`python -m gunicorn --help` gunicorn's options; its defaults here are those of service/gunicorn_conf.py.
"""
# glibc gives every thread an arena of its own; two are enough, and what is freed in one slot is there for the next. Of
# large pictures (blocks over 4 MB) all goes back at once, whatever was freed before; of the rest 8 MB are kept at most.
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 20),
}


def gunicorn_command(arguments: list[str]) -> list[str]:
    """The command to run, gunicorn's own options passed through.

    Raises:
        SettingsError: the port is none.
    """
    options: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--port" or argument.startswith("--port="):
            port = argument.partition("=")[2] or next(remaining, "")
            if not (port.isascii() and port.isdigit() and int(port) < 65536):
                raise SettingsError(f"--port {port or 'has no number'}: give one from 0 to 65535")
            options += ["--bind", f"127.0.0.1:{port}"]
        else:
            options.append(argument)
    return [
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        "python:service.gunicorn_conf",
        *options,
        "service.app:create_app()",
    ]


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(HELP)
        return
    try:
        read_settings()
        command = gunicorn_command(sys.argv[1:])
    except SettingsError as error:
        sys.stderr.write(f"service: {error}\n")
        sys.exit(2)
    os.execve(command[0], command, {**MALLOC, **os.environ})  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
