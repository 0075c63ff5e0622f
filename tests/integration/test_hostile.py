"""Peers that speak nonsense, to the server and to its clients."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import os
import random
import socket as sockets
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.client.errors import (
    MalformedMessage,
    ServerUnreachable,
    ServingError,
    VersionMismatch,
)
from bert_serving.client.frames import VERSION_FRAME, encode_message
from bert_serving.client.messages import Welcome
from bert_serving.client.protocol import ErrorAnswer, Result, parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.server.model.fake import fake_embedding

DIM = 384
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
"""How a ZMTP 3.1 peer begins."""
READY = b"\x04\x29\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
PACKED_HELLO = msgpack.packb({"type": "hello", "client": "x"})


@pytest.fixture(scope="module")
def server(module_server: Starter) -> ServerProcess:
    """A server to be ill-treated."""
    return module_server("-num_worker", "2")


@pytest.fixture(autouse=True)
def the_server_lives_on(server: ServerProcess) -> Iterator[None]:
    """Whatever a test has done: no process has been replaced, and the server answers."""
    before = set(server.processes())
    yield
    with server.client() as client:
        assert np.array_equal(client.encode("alive?"), fake_embedding("alive?", DIM))
    assert set(server.processes()) == before
    assert "Traceback" not in server.log


# what is not ZeroMQ


RAW: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello?\r\n",
    "http": b"GET /encode HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "zeroes": bytes(100_000),
    "half a greeting": GREETING[:20],
    "another mechanism": GREETING.replace(b"NULL", b"CURV"),
    "an old version": b"\x01\x00\x00",
    "a hello of ZMTP 1.0": b"\x01\x00" + b"\x06\x01" + VERSION_FRAME + b"\x16\x00" + PACKED_HELLO,
    "no handshake": GREETING + b"\x00" * 1000,
    "a command that is cut": GREETING + READY[:9],
    "garbage": random.Random(5).randbytes(50_000),
}


@pytest.mark.parametrize("data", RAW.values(), ids=RAW)
def test_raw_bytes_on_the_port_harm_nobody(server: ServerProcess, data: bytes) -> None:
    for _ in range(5):
        with sockets.create_connection(("127.0.0.1", server.port), 5 * SECOND) as peer:
            peer.settimeout(0.1 * SECOND)
            try:
                peer.sendall(data)
                peer.recv(100)
            except (TimeoutError, ConnectionError):
                pass


def greeted(server: ServerProcess) -> sockets.socket:
    """Return a connection that has been taken for a client's."""
    peer = sockets.create_connection(("127.0.0.1", server.port), 5 * SECOND)
    peer.sendall(GREETING)
    received(peer, len(GREETING))
    peer.sendall(READY)
    _, size = received(peer, 2)
    assert received(peer, size).startswith(b"\x05READY")
    return peer


def received(peer: sockets.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        assert part, "it has hung up"
        data += part
    return data


HELLO_FRAMES = b"\x01\x05" + VERSION_FRAME + bytes([0, len(PACKED_HELLO)]) + PACKED_HELLO
RAW_FRAMES: dict[str, bytes] = {
    "a frame that is never sent": b"\x02" + struct.pack(">Q", 1 << 40),
    "a frame that is cut": HELLO_FRAMES[:-3],
    "a negative size": b"\x02" + b"\xff" * 8,
    "unknown flags": b"\xf8\x05hello",
    "an unknown command": b"\x04\x06\x05HELLO",
    "an endless message": HELLO_FRAMES + b"\x01\x00" * 10_000,
    "garbage": random.Random(6).randbytes(50_000),
}


@pytest.mark.parametrize("data", RAW_FRAMES.values(), ids=RAW_FRAMES)
def test_raw_frames_of_a_client_harm_nobody(server: ServerProcess, data: bytes) -> None:
    for _ in range(5):
        with greeted(server) as peer:
            peer.sendall(HELLO_FRAMES)
            assert received(peer, 7)[2:] == VERSION_FRAME
            peer.settimeout(0.1 * SECOND)
            with contextlib.suppress(TimeoutError, ConnectionError):
                peer.sendall(data)
                while peer.recv(1_000):
                    pass


def test_connections_that_stay_half_open_harm_nobody(server: ServerProcess) -> None:
    peers = [sockets.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        for peer in peers[::2]:
            peer.sendall(GREETING[:11])
        with server.client() as client:
            assert np.array_equal(client.encode("a text"), fake_embedding("a text", DIM))
    finally:
        for peer in peers:
            peer.close()


# what is not the protocol


@contextmanager
def dealer(address: str) -> Iterator[zmq.Socket[Any]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 1_000
        socket.connect(address)
        yield socket


def ask(server: ServerProcess, *messages: list[Any]) -> list[Any]:
    """Send messages and return as many answers."""
    with dealer(f"tcp://127.0.0.1:{server.port}") as socket:
        for frames in messages:
            socket.send_multipart(frames)
        answers = []
        for _ in messages:
            assert socket.poll(int(5_000 * SECOND)), f"only {len(answers)} answers"
            answers.append(parse_answer(socket.recv_multipart()))
        return answers


def refused(server: ServerProcess, frames: list[Any], code: str = "invalid_request") -> str:
    (answer,) = ask(server, frames)
    assert isinstance(answer, ErrorAnswer), answer
    assert answer.code == code
    return answer.message


def encode_frames(texts: Any = ("a",), /, **fields: Any) -> list[Any]:
    header = {"type": "encode", "id": 1, "rows": len(texts), "ttl_ms": 5000, "views": {"e": {}}}
    header.update(fields)
    return encode_message(header, [pack_rows(texts)])


def deep(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


HELLO = {"type": "hello", "client": "x"}
NOT_MESSAGES: dict[str, list[Any]] = {
    "one empty frame": [b""],
    "one frame": [b"hello"],
    "empty frames": [b""] * 10,
    "an empty delimiter": [b"", *encode_frames()],
    "no version": encode_frames()[1:],
    "another name": [b"TERB\x01", b"\x80"],
    "another version": [b"BERT\x02", b"\x80"],
    "no header": [VERSION_FRAME, b""],
    "a cut header": [VERSION_FRAME, encode_frames()[1][:-3], b""],
    "garbage": [VERSION_FRAME, random.Random(1).randbytes(1000)],
    "a list": [VERSION_FRAME, msgpack.packb([1])],
    "numbers for keys": [VERSION_FRAME, msgpack.packb({1: 2})],
    "deep nesting": [VERSION_FRAME, b"\x91" * 5000 + b"\xc0"],
    "an extension type": [VERSION_FRAME, msgpack.packb({"type": msgpack.ExtType(5, b"x")})],
    "bad utf-8": [VERSION_FRAME, b"\x81\xa4type\xa5hel\xff\xff"],
    "no type": encode_message({}),
    "an unknown type": encode_message({"type": "shutdown"}),
    "bert-as-service's commands": [b"client", b"TERMINATION", b"1", b"1"],
    "a worker's message": encode_message({"type": "ready", "max_batch_tokens": 1}),
    "thousands of frames": [VERSION_FRAME, encode_frames()[1], *[b"x"] * 5000],
    "a huge header": [VERSION_FRAME, msgpack.packb({"type": "x" * (2 << 20)})],
}


@pytest.mark.parametrize("frames", NOT_MESSAGES.values(), ids=NOT_MESSAGES)
def test_what_is_no_message_is_answered_by_an_error(
    server: ServerProcess, frames: list[Any]
) -> None:
    assert refused(server, frames)


BAD_FIELDS: dict[str, dict[str, Any]] = {
    "id text": {"id": "1"},
    "id negative": {"id": -1},
    "id huge": {"id": 1 << 63},
    "id true": {"id": True},
    "id nil": {"id": None},
    "rows none": {"rows": 0},
    "rows too many": {"rows": 1 << 40},
    "rows more than there are": {"rows": 2},
    "rows a float": {"rows": 1.0},
    "ttl negative": {"ttl_ms": -1},
    "ttl huge": {"ttl_ms": 1 << 60},
    "ttl not a number": {"ttl_ms": float("nan")},
    "views a list": {"views": ["e"]},
    "views too many": {"views": {str(number): {} for number in range(17)}},
    "views a long name": {"views": {"e" * 65: {}}},
    "view text": {"views": {"e": "mean"}},
    "view unknown option": {"views": {"e": {"colour": 1}}},
    "view unknown pooling": {"views": {"e": {"pooling": "median"}}},
    "view pooling nested": {"views": {"e": {"pooling": deep(100)}}},
    "view no such layer": {"views": {"e": {"layers": [13]}}},
    "view no layers": {"views": {"e": {"layers": []}}},
    "view many layers": {"views": {"e": {"layers": [1] * 257}}},
    "view layers text": {"views": {"e": {"layers": "12"}}},
    "view dims": {"views": {"e": {"dims": 1 << 62}}},
    "view dtype": {"views": {"e": {"dtype": "object"}}},
    "max_length 0": {"max_length": 0},
    "max_length 1": {"max_length": 1},
    "max_length huge": {"max_length": 1 << 64 - 1},
    "is_tokenized 1": {"is_tokenized": 1},
    "show_tokens text": {"show_tokens": "yes"},
}


@pytest.mark.parametrize("fields", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_request_with_a_wrong_field_is_answered_by_an_error(
    server: ServerProcess, fields: dict[str, Any]
) -> None:
    assert refused(server, encode_frames(**fields))


BAD_ROWS: dict[str, bytes] = {
    "empty": b"",
    "garbage": random.Random(2).randbytes(100),
    "no list": msgpack.packb("a"),
    "numbers": msgpack.packb([1]),
    "bytes": msgpack.packb([b"a"]),
    "nothing": msgpack.packb([None]),
    "a triple": msgpack.packb([["a", "b", "c"]]),
    "tokens that are not announced": msgpack.packb([["a"]]),
    "a list that lies about its length": b"\xdd\xff\xff\xff\xff",
    "a text that lies about its length": b"\x91\xdb\xff\xff\xff\xff",
    "bad utf-8": b"\x91\xa2\xff\xff",
    "a surrogate": b"\x91\xa3\xed\xa0\x80",
    "deep nesting": b"\x91" * 5000 + b"\xc0",
    "two values": msgpack.packb(["a"]) * 2,
}


@pytest.mark.parametrize("buffer", BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_are_none_are_answered_by_an_error(server: ServerProcess, buffer: bytes) -> None:
    assert refused(server, [*encode_frames()[:2], buffer])


def test_a_huge_max_length_is_the_models_own(server: ServerProcess) -> None:
    (answer,) = ask(server, encode_frames(["word " * 600], max_length=(1 << 63) - 1))
    assert isinstance(answer, Result)
    assert answer.n_tokens == [512]


def test_a_bad_request_does_not_spoil_the_good_ones_beside_it(server: ServerProcess) -> None:
    frames = []
    for number in range(0, 300, 3):
        frames.append(encode_frames(id=number))
        frames.append(encode_frames(id=number + 1, views={"e": {"layers": [99]}}))
        frames.append([*encode_frames(id=number + 2)[:2], b"\xc1"])
    answers = ask(server, *frames)
    kinds = {answer.id: type(answer) for answer in answers}
    assert len(kinds) == 300
    assert {kinds[number] for number in range(0, 300, 3)} == {Result}
    assert {kinds[number] for number in range(300) if number % 3} == {ErrorAnswer}


def test_an_id_that_is_open_twice_is_refused_both_times(server: ServerProcess) -> None:
    first, second = ask(server, encode_frames(["fake:sleep 0.5"], id=7), encode_frames(["b"], id=7))
    assert {first.code, second.code} == {"invalid_request"}


def test_a_request_without_time_is_answered_so(server: ServerProcess) -> None:
    assert refused(server, encode_frames(ttl_ms=0), "deadline_exceeded")


def test_headers_that_take_long_to_look_at_hold_nobody_up(server: ServerProcess) -> None:
    empty_lists = b"\xdc\x00\x00" * 65_536
    header = b"\x83\xa1x\xdd\x00\x01\x00\x00" + empty_lists + encode_message(HELLO)[1][1:]
    address, hellos = f"tcp://127.0.0.1:{server.port}", 64
    with dealer(address) as slow, dealer(address) as other:
        for socket in (slow, other):
            socket.send_multipart(encode_message(HELLO))
            assert socket.poll(int(5_000 * SECOND))
            socket.recv_multipart()
        for _ in range(hellos):
            slow.send_multipart([VERSION_FRAME, header])
        other.send_multipart(encode_frames())
        assert other.poll(int(30_000 * SECOND))
        answered = 0
        while slow.poll(0):
            assert isinstance(parse_answer(slow.recv_multipart()), Welcome)
            answered += 1
        assert answered < hellos
        for _ in range(hellos - answered):
            assert slow.poll(int(30_000 * SECOND))
            slow.recv_multipart()


def test_cancelling_what_is_not_there_does_nothing(server: ServerProcess) -> None:
    with dealer(f"tcp://127.0.0.1:{server.port}") as socket:
        for ids in ([], [1, 1, 1], [(1 << 63) - 1], list(range(60_000))):
            socket.send_multipart(encode_message({"type": "cancel", "ids": ids}))
        socket.send_multipart(encode_frames(id=3))
        assert socket.poll(int(5_000 * SECOND))
        assert parse_answer(socket.recv_multipart()).id == 3


def test_a_frame_beyond_the_limit_costs_its_sender_the_connection(server: ServerProcess) -> None:
    with dealer(f"tcp://127.0.0.1:{server.port}") as socket:
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.send_multipart([*encode_frames()[:2], bytes(17 << 20)])
        assert monitor.poll(int(5_000 * SECOND))
        socket.disable_monitor()
        monitor.close()


def test_a_client_that_reads_no_answers_does_not_fill_the_server(start_server: Starter) -> None:
    server = start_server("-max_batch_size", "4")  # a window of such requests is soon full
    with dealer(f"tcp://127.0.0.1:{server.port}") as socket:
        socket.rcvhwm = 1
        rows = ["a"] * 100
        for number in range(3_000):
            socket.send_multipart(encode_frames(rows, id=number))
        eventually(lambda: "127.0.0.1 reads no answers: its connection is ended" in server.log)
        with server.client() as client:
            assert np.array_equal(client.encode("a text"), fake_embedding("a text", DIM))


def test_random_frames_leave_the_server_as_it_was(server: ServerProcess) -> None:
    chance = random.Random(7)
    whole = [
        encode_frames(["a", "b"]),
        encode_message({"type": "hello", "client": "x"}),
        encode_message({"type": "status", "id": 1}),
        encode_message({"type": "cancel", "ids": [1]}),
    ]
    with dealer(f"tcp://127.0.0.1:{server.port}") as socket:
        for _ in range(3_000):
            frames = [bytearray(frame) for frame in chance.choice(whole)]
            for _ in range(chance.randint(1, 3)):
                frame = chance.choice(frames)
                if frame:
                    frame[chance.randrange(len(frame))] = chance.randrange(256)
            if chance.random() < 0.1:
                frames.pop(chance.randrange(len(frames)))
            if frames:
                socket.send_multipart([bytes(frame) for frame in frames])
            while socket.poll(0):  # who does not read is not answered any more
                socket.recv_multipart()
        socket.send_multipart(encode_message({"type": "status", "id": 987_654}))
        asked = msgpack.packb({"id": 987_654})[1:]
        while socket.poll(int(5_000 * SECOND)):
            if asked in socket.recv_multipart()[1]:
                return
        pytest.fail("no answer came")


# the sockets between the server's own processes


def test_nonsense_on_the_control_sockets_harms_nobody(
    server: ServerProcess, control_folder: Path
) -> None:
    odd = [
        *([frames] for frames in NOT_MESSAGES.values()),
        *([encode_message({"type": kind})] for kind in INTERNAL),
        *([encode_message({"type": kind, **NONSENSE})] for kind in INTERNAL),
    ]
    for name in (f"{server.pid}.backend", f"{server.pid}.control", f"port-{server.port}.control"):
        for messages in odd:
            with dealer(f"ipc://{control_folder / name}") as socket:
                for frames in messages:
                    socket.send_multipart(frames)


INTERNAL = [
    "starting", "answers", "worker_ready", "worker_stuck", "worker_lost", "batch", "boot_failed",
    "bound", "hello", "drained", "ready", "retire", "settings", "report", "pong", "worker_refused",
    "scale", "status",
]  # fmt: skip
NONSENSE = {"worker": "x", "pid": None, "route": 5, "address": [], "batch": {}, "sizes": "a"}


def test_others_may_not_reach_the_control_sockets(control_folder: Path) -> None:
    assert control_folder.stat().st_mode & 0o077 == 0
    assert control_folder.stat().st_uid == os.getuid()


# clients, and servers that are none


Answerer = Callable[[zmq.Socket[Any]], None]


@contextmanager
def serving(kind: int, answer: Answerer) -> Iterator[int]:
    """Serve a ZeroMQ socket from a thread; gives its port."""
    stop = threading.Event()
    with zmq.Context() as context:
        socket = context.socket(kind)
        socket.linger = 0
        socket.rcvtimeo = 50  # a message that its pattern does not allow is dropped
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(zmq.Again):
                    answer(socket)
            socket.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield port
        finally:
            stop.set()
            thread.join()


def error_of(port: int, **options: Any) -> ServingError:
    """Return what a client's constructor ends with; checks that it was quick and says where."""
    started = time.monotonic()
    with pytest.raises(ServingError) as caught:
        BertClient(port=port, **{"connect_timeout": 700 * SECOND, **options})
    assert time.monotonic() - started < 4 * SECOND
    assert f":{port}" in str(caught.value) or "go away" in str(caught.value)
    return caught.value


def unused_port() -> int:
    with sockets.socket() as socket:
        socket.bind(("127.0.0.1", 0))
        return int(socket.getsockname()[1])


def test_no_server_is_a_typed_error_that_says_so() -> None:
    error = error_of(unused_port())
    assert isinstance(error, ServerUnreachable) and isinstance(error, ConnectionError)
    assert "nothing listens there: is bert-serving-start running" in str(error)


def test_no_server_is_noticed_within_seconds_by_default() -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnreachable):
        BertClient(port=unused_port())
    assert time.monotonic() - started < 7 * SECOND


def test_a_host_that_does_not_exist_is_a_typed_error() -> None:
    assert isinstance(error_of(5555, ip="no-such-host.invalid"), ServerUnreachable)


def test_a_client_without_checks_is_told_at_its_first_call() -> None:
    with BertClient(port=unused_port(), ignore_all_checks=True, connect_timeout=300) as client:
        with pytest.raises(ServerUnreachable):
            client.encode("a")
        with pytest.raises(ServerUnreachable):
            client.server_status  # noqa: B018  # it asks the server


def test_a_web_server_on_the_port_is_a_typed_error() -> None:
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            error = error_of(web.server_port)
        finally:
            web.shutdown()
            thread.join()
    assert isinstance(error, ServerUnreachable)
    assert "does not speak this protocol: is it the right port?" in str(error)


def test_a_server_that_accepts_and_says_nothing_is_a_typed_error() -> None:
    with sockets.create_server(("127.0.0.1", 0)) as silent:
        error = error_of(silent.getsockname()[1])
    assert isinstance(error, ServerUnreachable)
    assert "does not speak this protocol" in str(error)


def test_a_reply_socket_with_nonsense_is_a_typed_error() -> None:
    def answer(socket: zmq.Socket[Any]) -> None:
        socket.recv_multipart()
        socket.send(b"nonsense")

    with serving(zmq.REP, answer) as port:
        assert isinstance(error_of(port), ServerUnreachable)


ODD_ANSWERS: dict[str, tuple[list[bytes], type[ServingError], str]] = {
    "nonsense": ([b"non", b"sense"], MalformedMessage, "expected"),
    "one frame": ([b"BERT\x01"], MalformedMessage, "at least 2"),
    "another version": ([b"BERT\x02", b"\x80"], VersionMismatch, "version 2"),
    "no header": ([VERSION_FRAME, b"\xc1"], MalformedMessage, "msgpack"),
    "an empty welcome": (encode_message({"type": "welcome"}), MalformedMessage, "default_view"),
    "an error for all": (
        ErrorAnswer(None, "invalid_request", "go away").to_frames(), ServingError, "go away"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "kind", "text"), ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_an_odd_answer_is_a_typed_error(
    frames: list[bytes], kind: type[ServingError], text: str
) -> None:
    def answer(socket: zmq.Socket[Any]) -> None:
        route = socket.recv_multipart()[0]
        socket.send_multipart([route, *frames])

    with serving(zmq.ROUTER, answer) as port:
        error = error_of(port)
    assert isinstance(error, kind)
    assert text in str(error)


def test_an_asyncio_client_ends_with_the_same_errors() -> None:
    async def first_call(port: int) -> None:
        client = AsyncBertClient(port=port, connect_timeout=500)
        try:
            await client.encode("a")
        finally:
            await client.close()

    def answer(socket: zmq.Socket[Any]) -> None:
        route = socket.recv_multipart()[0]
        socket.send_multipart([route, b"BERT\x02", b"\x80"])

    port = unused_port()
    with pytest.raises(ServerUnreachable, match=f":{port}"):
        asyncio.run(first_call(port))
    with serving(zmq.ROUTER, answer) as port, pytest.raises(VersionMismatch, match=f":{port}"):
        asyncio.run(first_call(port))
