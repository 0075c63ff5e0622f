"""ZeroMQ's question whether a peer may come in, and the answer (RFC 27, ZAP 1.0): pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zmq.utils import z85

from .connections import plain_address

ADDRESS = "inproc://zeromq.zap.01"
"""Where ZeroMQ asks; fixed by the protocol."""

VERSION = b"1.0"
KEY_BYTES = 32
_FIXED_FRAMES = 6  # version, request id, domain, address, routing id, mechanism


@dataclass(frozen=True)
class ZapRequest:
    """A question of ZeroMQ's, in this process: it is not the peer's own words.

    Attributes:
        id: to be repeated in the answer.
        domain: which socket the peer has come to.
        address: the peer's.
        key: the public key that it has proved to have the secret half of; None without CURVE.

    """

    id: bytes
    domain: str
    address: str
    key: str | None

    @classmethod
    def parse(cls, frames: Sequence[bytes]) -> ZapRequest:
        """Return the question in some frames; raises ValueError if there is none."""
        if len(frames) < _FIXED_FRAMES or frames[0] != VERSION:
            raise ValueError(f"{len(frames)} frames are no ZAP 1.0 request")
        _, request_id, domain, address, _, mechanism = frames[:_FIXED_FRAMES]
        credentials = frames[_FIXED_FRAMES:]
        has_key = mechanism == b"CURVE" and [len(frame) for frame in credentials] == [KEY_BYTES]
        key = z85.encode(credentials[0]).decode() if has_key else None
        return cls(request_id, domain.decode(), plain_address(address.decode()), key)

    def answer(self, *, is_allowed: bool) -> list[bytes]:
        """Return the frames of the answer; ZeroMQ then marks the peer's messages with its key."""
        if not is_allowed or self.key is None:
            return [VERSION, self.id, b"400", b"not allowed", b"", b""]
        return [VERSION, self.id, b"200", b"OK", self.key.encode(), b""]
