"""Who comes in by the native port, and who does not: with keys, on this machine."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from key_files import KeyFiles, new_keys
from legacy_client import legacy_ports, old_wire
from server_process import SECOND, ServerProcess, Starter, command_line, eventually
from zmq.utils import z85

from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient
from bert_serving.client.errors import ServerUnreachable
from bert_serving.server.doors import zap
from bert_serving.server.doors.door import Door, Doors
from bert_serving.server.roles import DoorConfig

CONNECT_MS = 3_000 * SECOND


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    return new_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def alice(keys: KeyFiles) -> dict[str, Any]:
    return keys.add("alice")


@pytest.fixture(scope="module")
def server(module_server: Starter, keys: KeyFiles, alice: dict[str, Any]) -> ServerProcess:
    return module_server(*keys.options, "-legacy_port", "0")


def refusal(server: ServerProcess, **keys: Any) -> str:
    """Return what a client that is not let in is told."""
    started = time.monotonic()
    with pytest.raises(ServerUnreachable) as caught:
        server.client(connect_timeout=CONNECT_MS, **keys)
    assert time.monotonic() - started < 6 * SECOND
    return str(caught.value)


def still_answers(server: ServerProcess, alice: dict[str, Any]) -> None:
    with server.client(**alice) as client:
        assert client.encode(["a", "b"]).shape == (2, 384)


def test_a_client_with_an_allowed_key_is_served(
    server: ServerProcess, alice: dict[str, Any], fake_server: ServerProcess
) -> None:
    texts = [f"text {n}" for n in range(500)]
    with fake_server.client() as client:
        expected = client.encode(texts)
    with server.client(**alice) as client:
        np.testing.assert_array_equal(client.encode(texts), expected)
    with ConcurrentBertClient(port=server.port, max_concurrency=2, **alice) as client:
        np.testing.assert_array_equal(client.encode(texts), expected)

    async def encode() -> Any:
        async with AsyncBertClient(port=server.port, **alice) as client:
            return await client.encode(texts)

    np.testing.assert_array_equal(asyncio.run(encode()), expected)


def test_the_servers_key_may_be_given_as_its_characters(
    server: ServerProcess, alice: dict[str, Any]
) -> None:
    characters = Path(alice["server_key"]).read_text().split('"')[1]
    still_answers(server, {**alice, "server_key": characters})


def test_a_client_without_a_key_is_told_that_it_needs_one(
    server: ServerProcess, alice: dict[str, Any]
) -> None:
    assert "give server_key= and client_cert=" in refusal(server)
    still_answers(server, alice)


def test_a_client_with_an_unknown_key_is_told_so(
    server: ServerProcess, keys: KeyFiles, alice: dict[str, Any]
) -> None:
    mallory = keys.add("mallory", is_allowed=False)
    assert "it refuses this client's key" in refusal(server, **mallory)
    still_answers(server, alice)


def test_a_client_that_takes_another_for_the_server_is_told_so(
    server: ServerProcess, alice: dict[str, Any]
) -> None:
    wrong = {**alice, "server_key": "x" * 40}
    assert "server_key is not the key of this server" in refusal(server, **wrong)
    still_answers(server, alice)


def test_an_asyncio_client_is_told_the_same(server: ServerProcess, keys: KeyFiles) -> None:
    eve = keys.add("eve", is_allowed=False)

    async def encode(**given: Any) -> None:
        async with AsyncBertClient(port=server.port, connect_timeout=CONNECT_MS, **given) as client:
            await client.encode("a")

    for given, words in (({}, "give server_key="), (eve, "refuses this client's key")):
        with pytest.raises(ServerUnreachable, match=words):
            asyncio.run(encode(**given))


def test_a_client_with_keys_is_told_that_a_server_has_none(
    fake_server: ServerProcess, alice: dict[str, Any]
) -> None:
    assert "it does not encrypt" in refusal(fake_server, **alice)
    assert fake_server.status()["state"] == "ready"


def test_an_added_key_comes_in_and_a_removed_one_goes(
    start_server: Starter, keys: KeyFiles, alice: dict[str, Any]
) -> None:
    server = start_server(*keys.options)
    with server.client(**alice) as steady:
        bob = keys.add("bob")
        eventually(lambda: "2 keys in" in server.log)
        with server.client(**bob) as client:
            assert client.encode("a").shape == (384,)
            keys.public("bob").unlink()
            eventually(lambda: "bob is not allowed any more" in server.log)
            with pytest.raises(ServerUnreachable, match="refuses this client's key"):
                client.encode("b")
        assert "refuses this client's key" in refusal(server, **bob)
        assert "alice is not allowed" not in server.log
        assert steady.encode("a").shape == (384,)


def test_a_removed_key_gets_no_answer_to_what_it_asked(
    start_server: Starter, keys: KeyFiles, alice: dict[str, Any]
) -> None:
    carol = keys.add("carol")
    server = start_server(*keys.options)
    with server.client(**carol) as member, server.client(**alice) as steady:
        member.join("news")
        keys.public("carol").unlink()
        eventually(lambda: "carol is not allowed any more" in server.log)
        steady.encode(["secret"], group="news")
        copies = member.listen(timeout=5_000 * SECOND)
        with pytest.raises(ServerUnreachable):
            next(copies)
        assert steady.server_status["statistic"]["num_members"] == 0


def test_a_removed_key_goes_from_a_port_of_ipv6_too(start_server: Starter, keys: KeyFiles) -> None:
    if not sockets.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    dave = keys.add("dave")
    server = start_server("-host", "::", *keys.options)
    ended = "dave is not allowed any more: its connection from"
    with ExitStack() as stack:
        clients = [
            stack.enter_context(server.client(ip=ip, **dave)) for ip in ("127.0.0.1", "::1") * 3
        ]
        for client in clients:
            client.encode("a")
        keys.public("dave").unlink()
        eventually(lambda: server.log.count(f"{ended} 127.0.0.1 is ended") >= 3)
        eventually(lambda: server.log.count(f"{ended} ::1 is ended") >= 3)
        for client in clients:
            with pytest.raises(ServerUnreachable, match="refuses this client's key"):
                client.encode("b")
    assert "refused 127.0.0.1: its key" in server.log
    assert "::ffff:" not in server.log


def test_each_kind_of_refusal_is_a_line_and_a_scanner_is_not_a_thousand(
    start_server: Starter, keys: KeyFiles, alice: dict[str, Any]
) -> None:
    server = start_server(*keys.options)
    for _ in range(3):
        refusal(server)
    for _ in range(300):
        with sockets.create_connection(("127.0.0.1", server.port)) as scanner:
            scanner.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
            scanner.recv(64)
    still_answers(server, alice)
    lines = [line for line in server.log.splitlines() if "refused" in line]
    assert any("it uses no key" in line for line in lines)
    assert len(lines) <= 4, lines


def test_clients_of_bert_as_service_are_served_beside_the_door(server: ServerProcess) -> None:
    with old_wire(legacy_ports(server)) as wire:
        wire.subscribe(b"old")
        wire.send(b"old", json.dumps(["a", "b"]).encode(), b"0", b"2")
        assert wire.receive()[0] == b"old"


def test_no_secret_is_in_status_log_process_list_or_environment(
    server: ServerProcess, keys: KeyFiles, alice: dict[str, Any]
) -> None:
    with server.client(**alice) as client:
        status = client.server_status
    seen = [repr(status), server.log]
    for pid in server.processes():
        seen.append(command_line(pid))
        seen.append(Path(f"/proc/{pid}/environ").read_bytes().decode("utf-8", "replace"))
    assert status["encrypted"] is True
    assert "server_key" not in status
    assert len(seen) > 6
    for secret in keys.secrets():
        assert not any(secret in text for text in seen)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-host", "0.0.0.0"], "-server_key and -client_keys"),
        (["-host", "::"], "-allow_insecure"),
        (["-host", "0.0.0.0", "-legacy_port", "0", "KEYS"], "-legacy_port on -host 0.0.0.0"),
        (["-client_keys", "/tmp"], "-client_keys needs -server_key"),
        (["-server_key", "/nowhere", "-client_keys", "/tmp"], "/nowhere cannot be read"),
        (["KEYS", "-client_keys", "/nowhere"], "-client_keys /nowhere is no folder"),
    ],
)
def test_a_door_that_would_be_open_is_refused_at_start(
    start_server: Starter, keys: KeyFiles, options: list[str], words: str
) -> None:
    told = [part for word in options for part in (keys.options if word == "KEYS" else [word])]
    server = start_server(*told, wait=False)
    assert server.wait(10 * SECOND) != 0
    assert words in server.last_line


def test_a_secret_that_others_can_read_is_refused_at_start(
    start_server: Starter, tmp_path: Path
) -> None:
    keys = new_keys(tmp_path)
    (tmp_path / "server.key_secret").chmod(0o644)
    server = start_server(*keys.options, wait=False)
    assert server.wait(10 * SECOND) != 0
    assert "chmod 600" in server.last_line


def test_what_keygen_makes_lets_a_client_in(start_server: Starter, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    for words in (["server"], ["client", "alice"]):
        command = [sys.executable, "-m", "bert_serving.server.cli.keygen", "-dir", folder, *words]
        subprocess.run(command, check=True, capture_output=True, timeout=20 * SECOND)
    made = KeyFiles(folder)
    server = start_server(*made.options)
    secret = str(folder / "alice.key_secret")
    still_answers(server, {"server_key": made.server_key, "client_cert": secret})


def test_a_client_is_refused_half_a_pair_before_it_connects(alice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs client_cert"):
        BertClient(server_key=alice["server_key"])


# whose connection has ended


@dataclass(frozen=True)
class FirstFrame:
    """What a door looks at of a message that a connection with a key has sent."""

    route: bytes
    descriptor: int
    key: str

    @property
    def bytes(self) -> bytes:
        return self.route

    def get(self, name: int | str) -> int | str:
        return self.key if name == "User-Id" else self.descriptor


@dataclass(frozen=True)
class Doorway:
    """The doors of a socket that nobody connects to: a test says what its monitor reports."""

    doors: Doors
    door: Door
    monitor: zmq.Socket[Any]
    questions: zmq.Socket[Any]
    key: str

    def report(self, event: int, descriptor: int) -> None:
        self.monitor.send_multipart([struct.pack("=hi", event, descriptor), b""])

    def ask(self) -> None:
        """Ask about a new connection, as ZeroMQ does before it may send anything."""
        question = [b"1.0", b"7", b"clients", b"10.0.0.2", b"", b"CURVE", z85.decode(self.key)]
        self.questions.send_multipart(question)
        answer, *_ = self.doors.receivers().values()
        answer()
        assert self.questions.recv_multipart()[2] == b"200"

    def speak(self, route: bytes, descriptor: int) -> None:
        frame: Any = FirstFrame(route, descriptor, self.key)
        assert self.door.lets_in(frame)


@pytest.fixture
def doorway(keys: KeyFiles, alice: dict[str, Any]) -> Iterator[Doorway]:
    server_key = str(Path(keys.server_key).with_suffix(".key_secret"))
    key = Path(keys.public("alice")).read_text().split('"')[1]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as guarded:
        doors = Doors(context)
        config = DoorConfig(server_key=server_key, allowed=str(keys.folder / "clients"))
        door = doors.guard(guarded, "clients", config)
        guarded.disable_monitor()
        door.monitor.close()
        with context.socket(zmq.PAIR) as monitor, context.socket(zmq.REQ) as questions:
            monitor.linger = questions.linger = 0
            door.monitor = context.socket(zmq.PAIR)
            door.monitor.rcvhwm = monitor.sndhwm = 0
            door.monitor.bind("inproc://reports")
            monitor.connect("inproc://reports")
            questions.connect(zap.ADDRESS)
            yield Doorway(doors, door, monitor, questions, key)
            doors.close()


def test_who_has_a_descriptor_that_was_anothers_is_not_taken_for_gone(doorway: Doorway) -> None:
    doorway.speak(b"old", 1_000_007)
    for _ in range(100):  # connections that come and go
        doorway.report(zmq.EVENT_ACCEPTED, 1_000_008)
        doorway.report(zmq.EVENT_DISCONNECTED, 1_000_008)
    doorway.report(zmq.EVENT_DISCONNECTED, 1_000_007)
    doorway.ask()
    doorway.speak(b"new", 1_000_007)
    assert doorway.door.gone() == [b"old"]
    doorway.door.watch()
    assert doorway.door.gone() == []
