"""Keeps one conversion of each of Google's checkpoints that were served on this machine.

The first worker that starts converts; others wait for it; later starts find it there and
need no TensorFlow. A conversion belongs to the very files it was made of: where one has
another size or time of change, there is a new one, and the old one goes.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .cache import cache_folder, digest
from .checkpoint import Checkpoint
from .google_checkpoint import GoogleCheckpoint, find_google_checkpoint, is_google_directory
from .replica import ModelLoadError
from .tensorflow_reader import READ_TIMEOUT_S

logger = logging.getLogger(__name__)

_VERSION = 1  # of what is written; another one makes new conversions
_POLL_S = 0.1


def converted(checkpoint: Checkpoint, ckpt_name: str, config_name: str) -> Checkpoint:
    """Return the checkpoint as it is, or, of a Google checkpoint, its conversion.

    Args:
        checkpoint: of either kind.
        ckpt_name: the name of a Google checkpoint's weights.
        config_name: the name of its configuration.

    Raises:
        ModelLoadError: it cannot be converted; the message names the cause in one line.

    """
    weights_dir = checkpoint.weights_directory
    if not is_google_directory(weights_dir, ckpt_name, config_name):
        return checkpoint
    google = find_google_checkpoint(checkpoint.directory, weights_dir, ckpt_name, config_name)
    try:
        return Checkpoint(checkpoint.name, _conversion(google))
    except OSError as error:
        raise ModelLoadError(
            f"{error.filename or google.prefix}: {error.strerror or error}: set XDG_CACHE_HOME to "
            "where a conversion may be kept, or serve what bert-serving-convert writes"
        ) from None


def _conversion(google: GoogleCheckpoint) -> Path:
    """Return the directory of a checkpoint's conversion, made now if it is not there."""
    paths = [str(path.resolve()) for path in google.files]
    folder = cache_folder() / f"{google.prefix.parent.name}-{digest(paths)}"
    states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in google.files]
    out = folder / digest([_VERSION, paths, states])
    if out.is_dir():
        logger.debug("%s was converted before, to %s", google.prefix, out)
        return out
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "lock"):
        if not out.is_dir():  # it may be there after the wait
            _remove_folders(folder)
            logger.info("converting %s, once, to %s", google.prefix, out)
            google.convert(out, lower_case=True)
    return out


def _remove_folders(parent: Path) -> None:
    """Remove conversions of files that have changed, and what an interrupted one left."""
    for path in parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Be the only process inside for one path; a process that dies is no longer inside."""
    deadline = time.monotonic() + READ_TIMEOUT_S
    with path.open("w") as file:
        while not _has_locked(file.fileno()):
            if time.monotonic() >= deadline:
                raise ModelLoadError(f"{path}: another process has held it for too long")
            time.sleep(_POLL_S)
        yield


def _has_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
