"""The user's folder for what is made once and kept: conversions, calibrations."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder; it may not be there yet. `XDG_CACHE_HOME` moves it.

    A user without a home, as containers have it, gets one among the temporary files.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(cache or "~/.cache").expanduser() / "bert-serving"
    except RuntimeError:
        return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    """Return a folder of this user's that nobody else may enter: models are loaded from it."""
    folder = Path(tempfile.gettempdir()) / f"bert-serving-cache-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if private and status.st_uid == os.getuid():
            return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


def digest(content: object) -> str:
    """Return a short name for what JSON can write."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_kept(path: Path) -> Any:
    """Return what is kept in a file of JSON; None if there is none.

    Raises:
        OSError, ValueError: it cannot be read.

    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def keep(path: Path, content: Any) -> None:
    """Keep what JSON can write: whole, or, where it cannot be written, not at all."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), "utf-8")
        partial.replace(path)
    except OSError as error:
        logger.info("not kept: %s: %s", path, error.strerror or error)
