"""Saying where a server answers: the ready line, and the file of `-ready_file`."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from . import logs


class ReadyFileError(Exception):
    """The file cannot be written; the message names it and says why."""


def announce(addresses: dict[str, Any], file: str | None) -> None:
    """Write the addresses to the file, and a line of them to standard error."""
    if file is not None:
        _write_atomically(Path(file), json.dumps(addresses) + "\n")
    words = " ".join(f"{name}={_word(value)}" for name, value in addresses.items())
    logs.write_ready(f"ready {words}", **addresses)


def remove_stale(file: str | None) -> None:
    """Remove what an earlier server wrote, so that it is not taken for this one's.

    Raises:
        ReadyFileError: it cannot be removed, or no server wrote it: a folder, a link, a device.

    """
    if file is None:
        return
    path = Path(file)
    try:
        is_plain = stat.S_ISREG(path.lstat().st_mode)
        if is_plain:
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(path, error) from None
    if not is_plain:
        raise ReadyFileError(
            f"-ready_file {path} is there and no plain file: give another path, or remove it"
        )


def withdraw(file: str | None) -> None:
    """Remove the file if it is this process's own: it answers no more."""
    if file is not None:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if json.loads(Path(file).read_bytes())["pid"] == os.getpid():
                Path(file).unlink()


def _word(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def _write_atomically(path: Path, text: str) -> None:
    """Write a file so that whoever reads it sees all of it or none."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> ReadyFileError:
    return ReadyFileError(f"-ready_file {path} cannot be written: {error.strerror}")
