"""The folders that a server writes to."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from bert_serving.server.control import ControlError, control_folder, is_too_long
from bert_serving.server.model.cache import cache_folder

from .finding import Finding, ok, problem, warning

LOW_BYTES = 1 << 30
SHORT_FOLDER = "set XDG_RUNTIME_DIR to a folder of your own, with a short name"


def look_at_control_folder() -> list[Finding]:
    """Check the folder where the server's processes meet."""
    try:
        folder = control_folder()
    except ControlError as error:
        return [problem("control folder", str(error), SHORT_FOLDER)]
    return [judge_control_folder(folder, is_writable(folder))]


def judge_control_folder(folder: Path, writable: bool) -> Finding:
    """Return whether sockets can be made in a folder."""
    if is_too_long(folder):
        seen = f"{folder}: too long for the path of a socket"
        return problem("control folder", seen, SHORT_FOLDER)
    if not writable:
        return problem("control folder", f"{folder}: nothing can be written there", SHORT_FOLDER)
    return ok("control folder", f"{folder}, private")


def look_at_cache() -> list[Finding]:
    """Check the folder where what is made once is kept."""
    folder = cache_folder()
    return [judge_cache(folder, is_writable(folder), shutil.disk_usage(_existing(folder)).free)]


def judge_cache(folder: Path, writable: bool, free_bytes: int) -> Finding:
    """Return whether calibrations and conversions can be kept."""
    seen = f"{folder}, {free_bytes / 1e9:.1f} GB free"
    if not writable:
        advice = "set XDG_CACHE_HOME to a folder of your own: else each start measures anew"
        return warning("cache folder", f"{folder}: nothing can be written there", advice)
    if free_bytes < LOW_BYTES:
        return warning("cache folder", seen, "make room: a converted model takes its size again")
    return ok("cache folder", seen)


def look_at_disk() -> list[Finding]:
    """Check the room in the folder for temporary files."""
    folder = tempfile.gettempdir()
    return [judge_disk(folder, shutil.disk_usage(folder).free)]


def judge_disk(folder: str, free_bytes: int) -> Finding:
    """Return whether there is room."""
    if free_bytes < 1 << 20:
        return problem("disk", f"{folder} is full", "make room")
    if free_bytes < LOW_BYTES // 10:
        return warning("disk", f"{folder}: {free_bytes / 1e6:.0f} MB free", "make room")
    return ok("disk", f"{folder}: {free_bytes / 1e9:.1f} GB free")


def is_writable(folder: Path) -> bool:
    """Whether a file can be written in a folder, or in what it would be made in."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"x")
            file.flush()
    except OSError:
        return False
    return True


def _existing(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
