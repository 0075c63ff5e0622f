"""Where a server is, and with which keys it is spoken to."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Keys:
    """The keys of an encrypted connection (CURVE), each as 40 characters of Z85.

    Attributes:
        server: the server's public key: nobody else can answer in its place.
        public: the client's own, which the server must know.
        secret: its other half, which is never sent, shown or logged.

    """

    server: bytes
    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Endpoint:
    """What a socket needs in order to reach one server.

    Attributes:
        address: the server's ZeroMQ address.
        keys: None for a connection that is not encrypted.

    """

    address: str
    keys: Keys | None = None

    def __str__(self) -> str:
        return self.address
