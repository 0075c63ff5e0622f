"""The user's folder for what is made once and kept: conversions, calibrations."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder; it may not be there yet. `XDG_CACHE_HOME` moves it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or "~/.cache").expanduser() / "bert-serving"


def digest(content: object) -> str:
    """Return a short name for what JSON can write."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
