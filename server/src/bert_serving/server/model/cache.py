"""The user's folder for what is made once and kept: conversions, calibrations."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder; it may not be there yet. `XDG_CACHE_HOME` moves it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or "~/.cache").expanduser() / "bert-serving"


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
