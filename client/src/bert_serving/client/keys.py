"""Reading the keys of encrypted connections from the files that `bert-serving-keygen` writes.

The files are those of ZeroMQ's own tools (`zmq.auth.create_certificates`): `NAME.key` has a
public key and may be shown to anybody, `NAME.key_secret` has both halves.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from .endpoint import Keys

MAX_FILE_BYTES = 16 << 10  # a certificate has some hundred
_KEY = re.compile(r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")  # Z85
_LINE = re.compile(rb"""^\s*(public|secret)-key\s*=\s*["']([^"'\n]*)["']\s*$""", re.MULTILINE)
_FOR_OTHERS = stat.S_IROTH | stat.S_IWOTH


class KeyFileError(ValueError):
    """A key, or the file it should be in, cannot be used; the message says why."""


@dataclass(frozen=True)
class Certificate:
    """What a file has: a public key, and the secret half if the file is its owner's."""

    public: bytes
    secret: bytes | None = field(default=None, repr=False)


def connection_keys(
    server_key: str | os.PathLike[str] | None, client_cert: str | os.PathLike[str] | None
) -> Keys | None:
    """Return the keys for a client's `server_key` and `client_cert`; None if it has neither.

    Raises:
        KeyFileError: one of them is missing or cannot be used.

    """
    if server_key is None and client_cert is None:
        return None
    if server_key is None:
        raise KeyFileError("client_cert needs server_key: the server's public key, or its file")
    if client_cert is None:
        raise KeyFileError("server_key needs client_cert: the file with this client's secret key")
    own = read_secret(client_cert)
    assert own.secret is not None  # as it was read for that
    return Keys(server=public_key(server_key), public=own.public, secret=own.secret)


def public_key(given: str | os.PathLike[str]) -> bytes:
    """Return a public key that is given as its 40 characters, or as the file that has it."""
    if isinstance(given, str) and is_key(given):
        return given.encode()
    return read_certificate(given).public


def is_key(text: str) -> bool:
    """Whether a text can be a key: 40 characters of Z85 that stand for 32 bytes."""
    if _KEY.fullmatch(text) is None:
        return False
    try:
        z85.decode(text)
    except struct.error:  # five characters that stand for more than 32 bits
        return False
    return True


def read_secret(path: str | os.PathLike[str]) -> Certificate:
    """Return a certificate with both halves, from a file that is not for others to read."""
    certificate = read_certificate(path)
    if certificate.secret is None:
        raise KeyFileError(f"{path} has no secret key: give the file that ends in .key_secret")
    # a group may be let in on purpose: so does Kubernetes where a service has its own user
    if Path(path).stat().st_mode & _FOR_OTHERS:
        raise KeyFileError(f"{path} holds a secret that anybody can read: chmod 600 {path}")
    return certificate


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """Return what a certificate's file has.

    Raises:
        KeyFileError: it cannot be read, or has no key, or two that do not belong together.

    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from None
    found = dict(_LINE.findall(content)) if len(content) <= MAX_FILE_BYTES else {}
    halves = {name: value for name, value in found.items() if is_key(value.decode("latin-1"))}
    if b"public" not in halves or halves.keys() != found.keys():
        raise KeyFileError(f"{path} is no key file as bert-serving-keygen writes them")
    public, secret = halves[b"public"], halves.get(b"secret")
    if secret is not None and zmq.curve_public(secret) != public:
        raise KeyFileError(f"the two keys in {path} do not belong together")
    return Certificate(public, secret)
