"""The folder of public keys that may come in, read again when it has changed.

A key that cannot be read is not allowed, and neither is any while the folder is gone. A folder
that is there but cannot be read (no file descriptor left, say) changes nothing: a fault of
this machine should not shut all clients out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bert_serving.client.keys import KeyFileError, read_certificate
from bert_serving.server.certificates import PUBLIC_SUFFIX

MAX_KEYS = 10_000


class Entry(NamedTuple):
    """One name in the folder, with what changes when its file is replaced, or may be read now."""

    name: str
    mode: int = 0  # 0 if nothing is known: the file cannot be reached
    mtime_ns: int = 0
    ctime_ns: int = 0
    size: int = 0
    inode: int = 0


Signature = tuple[Entry, ...]


class Keyring:
    """The keys of one folder.

    Args:
        folder: its `*.key` files are certificates with a public key.

    Attributes:
        folder: as given.
        names: the name of each key that is allowed, by its 40 characters.

    """

    def __init__(self, folder: Path) -> None:
        self.names: Mapping[str, str] = {}
        self.folder = folder
        self._signature: Signature | None = None
        self._complaint: str | None = None

    def refresh(self) -> list[str] | None:
        """Read the folder again if it has changed.

        Returns:
            None if it has not; else what is wrong with it, each in a line for the log.

        """
        try:
            signature = _signature(self.folder)
        except OSError as error:
            return self._on_unreadable(error)
        if signature == self._signature:
            return None
        self._signature, self._complaint = signature, None
        self.names, problems = _read(self.folder, signature)
        return problems

    def _on_unreadable(self, error: OSError) -> list[str] | None:
        complaint = f"{self.folder} cannot be read ({error.strerror})"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            self.names, self._signature = {}, None
            complaint += ": nobody is let in"
        if complaint == self._complaint:
            return None
        self._complaint = complaint
        return [complaint]


def _signature(folder: Path) -> Signature:
    """Return what changes when a certificate is added, removed or replaced."""
    with os.scandir(folder) as entries:
        found = [_looked_at(entry) for entry in entries if entry.name.endswith(PUBLIC_SUFFIX)]
    return tuple(sorted(entry for entry in found if entry is not None))


def _looked_at(entry: os.DirEntry[str]) -> Entry | None:
    try:
        status = entry.stat()
    except FileNotFoundError:  # removed in between, or a link to nothing
        return None
    except OSError:  # reading it will say why
        return Entry(entry.name)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return Entry(entry.name, status.st_mode, *times, status.st_size, status.st_ino)


def _read(folder: Path, signature: Signature) -> tuple[dict[str, str], list[str]]:
    names: dict[str, str] = {}
    problems = []
    for file, mode, *_ in signature[:MAX_KEYS]:
        if mode and not stat.S_ISREG(mode):  # to open a pipe is to wait for its writer
            problems.append(f"not allowed: {folder / file} is no file")
            continue
        try:
            certificate = read_certificate(folder / file)
        except KeyFileError as error:
            problems.append(f"not allowed: {error}")
            continue
        if certificate.secret is not None:
            problems.append(
                f"{folder / file} holds a secret key, which belongs to its owner alone: "
                "only public keys are needed here"
            )
        names[certificate.public.decode()] = file.removesuffix(PUBLIC_SUFFIX)
    if len(signature) > MAX_KEYS:
        problems.append(f"{folder} has more than {MAX_KEYS} keys: the others are not allowed")
    return names, problems
