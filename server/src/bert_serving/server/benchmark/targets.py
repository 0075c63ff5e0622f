"""Which server a load is put on, by its address: ours, or another that users have. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

NATIVE, HTTP, LEGACY = "native", "http", "legacy"

OURS = "bert-serving"
"""What tables call the server under test."""

EXPECTED = (
    "expected NAME=http://HOST:PORT/PATH (OpenAI-style, asked at PATH/embeddings), "
    "NAME=HOST:PORT (bert-serving-start) or NAME=HOST:PORT:PORT_OUT (bert-as-service 1.10)"
)


@dataclass(frozen=True)
class Target:
    """A server's address, and what is spoken there.

    Attributes:
        name: what tables call it.
        wire: `native`, `http` or `legacy`.
        host: its name or address.
        port: where requests go.
        port_out: where bert-as-service's results come from; else 0.
        path: what an HTTP server's paths begin with.

    """

    name: str
    wire: str
    host: str
    port: int
    port_out: int = 0
    path: str = ""

    @classmethod
    def ours(cls, host: str, port: int) -> Target:
        """Return the native port of a server of ours."""
        return cls(OURS, NATIVE, host, port)


def parse_target(text: str) -> Target:
    """Return the server in words such as `infinity=http://127.0.0.1:7997`.

    Raises:
        ValueError: they name none; it says what is expected.

    """
    name, _, address = text.partition("=")
    try:
        if not name or not address:
            raise ValueError
        if "//" in address:
            return _http(name, address)
        host, *numbers = _split(address)
        ports = [_port(number) for number in numbers]
        if len(ports) == 1:
            return Target(name, NATIVE, host, ports[0])
        port, port_out = ports
    except ValueError:
        raise ValueError(f"{text!r}: {EXPECTED}") from None
    return Target(name, LEGACY, host, port, port_out)


def _http(name: str, address: str) -> Target:
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(address)
    return Target(name, HTTP, parts.hostname, parts.port or 80, path=parts.path.rstrip("/"))


def _split(address: str) -> list[str]:
    """Return host and ports; the host may be an IPv6 address in brackets."""
    if address.startswith("["):
        host, _, ports = address[1:].partition("]:")
        return [host, *ports.split(":")]
    host, *numbers = address.split(":")
    if not host:
        raise ValueError(address)
    return [host, *numbers]


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ValueError(text)
    return int(text)
