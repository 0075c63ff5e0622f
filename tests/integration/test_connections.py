"""Who is at the other end of a connection, and ending it: with sockets of each family."""

from __future__ import annotations

import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_process import SECOND

from bert_serving.server.doors.connections import address_of, hang_up, peer_of

OPEN_DESCRIPTORS = Path("/proc/self/fd")
LISTENS_TO_CONNECTS = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")]


@contextmanager
def connected(listens_to: str, connects: str) -> Iterator[tuple[sockets.socket, sockets.socket]]:
    """A connection's two ends: the one that was accepted, and the other's."""
    family = sockets.AF_INET6 if ":" in listens_to else sockets.AF_INET
    try:
        listener = sockets.create_server(
            (listens_to, 0), family=family, dualstack_ipv6=listens_to == "::"
        )
    except OSError as error:
        pytest.skip(f"this machine has no {listens_to}: {error}")
    port = listener.getsockname()[1]
    with listener, sockets.create_connection((connects, port), 5 * SECOND) as other:
        accepted, _ = listener.accept()
        with accepted:
            yield accepted, other


@pytest.mark.parametrize(("listens_to", "connects"), LISTENS_TO_CONNECTS)
def test_a_peer_is_known_by_its_address_and_port(listens_to: str, connects: str) -> None:
    with connected(listens_to, connects) as (accepted, other):
        descriptor = accepted.fileno()
        assert peer_of(descriptor)[:2] == other.getsockname()[:2]
        assert address_of(descriptor) == connects
        assert len({peer_of(descriptor) for _ in range(20)}) == 1


@pytest.mark.parametrize(("listens_to", "connects"), LISTENS_TO_CONNECTS)
def test_a_connection_is_ended_if_it_is_still_that_peers(listens_to: str, connects: str) -> None:
    with connected(listens_to, connects) as (accepted, other):
        descriptor, peer = accepted.fileno(), peer_of(accepted.fileno())
        assert not hang_up(descriptor, None)
        assert not hang_up(descriptor, (peer[0], peer[1] + 1, *peer[2:]))
        assert hang_up(descriptor, peer)
        assert other.recv(1) == b""


def test_a_descriptor_that_is_no_connections_has_no_peer(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        before = set(OPEN_DESCRIPTORS.iterdir())
        assert peer_of(file.fileno()) is None
        assert not hang_up(file.fileno(), ("127.0.0.1", 1))
        assert set(OPEN_DESCRIPTORS.iterdir()) == before


def test_a_local_sockets_peer_has_no_address() -> None:
    one, other = sockets.socketpair()
    with one, other:
        assert address_of(one.fileno()) is None
