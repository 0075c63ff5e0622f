"""Making key pairs, and writing them where neither is lost nor read by others."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import zmq

PUBLIC_SUFFIX, SECRET_SUFFIX = ".key", ".key_secret"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHOWN_REMARK = "# CURVE public key of {name}: may be shown to anybody\n"
_OWN_REMARK = "# CURVE SECRET key of {name}: for nobody else, never to be sent unencrypted\n"


class CertificateError(Exception):
    """A pair cannot be written; the message says why."""


@dataclass(frozen=True)
class Pair:
    """The files of a key pair."""

    public: Path
    secret: Path


def pair_files(name: str, secret_folder: Path, public_folder: Path) -> Pair:
    """Return where a pair of this name goes; raises CertificateError for a name no file has."""
    if _NAME.fullmatch(name) is None:
        raise CertificateError(
            f"{name!r} is no name for a key: expected letters, digits, and . _ @ - between them"
        )
    return Pair(public_folder / f"{name}{PUBLIC_SUFFIX}", secret_folder / f"{name}{SECRET_SUFFIX}")


def write_pair(name: str, files: Pair) -> None:
    """Make a key pair and write it; a file that is there already is never replaced.

    Raises:
        CertificateError: one of the files is there, or cannot be written.

    """
    for file in (files.secret, files.public):
        if file.exists():
            raise CertificateError(
                f"{file} is there already: give another name, or remove it if nobody uses it"
            )
    public, secret = (half.decode() for half in zmq.curve_keypair())
    lines = f'curve\n    public-key = "{public}"\n'
    try:
        for folder in (files.secret.parent, files.public.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(
            files.secret,
            f'{_OWN_REMARK.format(name=name)}{lines}    secret-key = "{secret}"\n',
            mode=0o600,
        )
        try:
            _write(files.public, _SHOWN_REMARK.format(name=name) + lines, mode=0o644)
        except OSError:
            with contextlib.suppress(OSError):  # half a pair is of no use
                files.secret.unlink()
            raise
    except OSError as error:
        where = error.filename or files.secret.parent
        raise CertificateError(f"{where} cannot be written: {error.strerror}") from None


def _write(file: Path, text: str, *, mode: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError:
        with contextlib.suppress(OSError):  # what is not whole would be in the next one's way
            file.unlink()
        raise
