"""What a server writes to its log, and a log that cannot be written."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from legacy_client import legacy_ports, old_wire
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client.errors import ServingError
from bert_serving.client.frames import VERSION_FRAME, encode_message
from bert_serving.client.rows import pack_rows
from bert_serving.server import exit_codes
from bert_serving.server.model.fake import fake_embedding

MARK = "xyzzy"
"""In every sentence that the tests here send, and in no line of a log."""

ENCODE = {"type": "encode", "id": 1, "rows": 1, "ttl_ms": 5_000, "views": {"v": {}}}
HELLO = [VERSION_FRAME, msgpack.packb({"type": "hello", "client": "test"})]

GOOD_ROWS: list[dict[str, Any]] = [
    {"rows": [f"a {MARK} text", f"{MARK}\n2026-01-01 ERROR {MARK}"]},
    {"rows": [(f"one {MARK}", f"{MARK} other")], "pooling": "none", "show_tokens": True},
    {"rows": [[MARK, f"##{MARK}"]], "is_tokenized": True},
    {"rows": [f"{MARK} " * 2_000], "max_length": 4},
    {"rows": [f"to members {MARK}"], "group": "a group"},
    {"rows": [MARK], "layers": [99]},
    {"rows": [MARK], "pooling": "regression"},
]
BAD_FRAMES: list[list[bytes]] = [
    [MARK.encode(), MARK.encode()],
    [MARK.encode()],
    [VERSION_FRAME, MARK.encode()],
    [VERSION_FRAME, msgpack.packb([MARK])],
    encode_message({"type": MARK}),
    encode_message({"type": MARK}, [pack_rows([MARK])]),
    encode_message({**ENCODE, "rows": MARK}, [pack_rows([MARK])]),
    encode_message({**ENCODE, "rows": 2}, [pack_rows([MARK])]),
    encode_message({**ENCODE, "is_tokenized": True}, [pack_rows([MARK])]),
    encode_message({**ENCODE, "is_tokenized": MARK}, [pack_rows([MARK])]),
    encode_message(ENCODE, [MARK.encode()]),
    encode_message(ENCODE, [b"\xa5" + MARK.encode() + b"\xff"]),
    encode_message(ENCODE, [pack_rows([MARK]), MARK.encode()]),
    encode_message({**ENCODE, "views": {"v": {"pooling": MARK}}}, [pack_rows([MARK])]),
    encode_message({**ENCODE, "views": {"v": {MARK: MARK}}}, [pack_rows([MARK])]),
    encode_message({**ENCODE, "views": {MARK: {"layers": [MARK]}}}, [pack_rows([MARK])]),
    encode_message({"type": "cancel", "ids": MARK}),
    encode_message({"type": "membership", "id": 1, "groups": MARK}),
]
LEGACY_FRAMES: list[list[bytes]] = [
    [b"me", json.dumps([f"a {MARK}", f"{MARK} ||| {MARK}"]).encode(), b"1", b"2"],
    [b"me", json.dumps([[MARK, MARK]]).encode(), b"2", b"1"],
    [b"me", MARK.encode(), b"3", b"1"],
    [b"me", f'["{MARK}", {MARK}]'.encode(), b"4", b"1"],
    [b"me", json.dumps([MARK, 7]).encode(), b"5", b"1"],
    [b"me", json.dumps([7, MARK]).encode(), b"6", b"1"],
    [b"me", json.dumps({MARK: MARK}).encode(), b"7", b"1"],
    [b"me", json.dumps([f"{MARK} \ud800"]).encode(), b"8", b"1"],
    [b"me", b"1", MARK.encode(), b"1"],
    [b"me", MARK.encode()],
]


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    """Return the lines of a log, each of which must be JSON."""
    return [json.loads(line) for line in server.log.splitlines()]


def answers(server: ServerProcess, dim: int = 384) -> bool:
    with server.client() as client:
        return np.array_equal(client.encode(["alive?"]), [fake_embedding("alive?", dim)])


def send_all(server: ServerProcess) -> None:
    """Send everything good and bad that there is here, natively and as old clients do."""
    with server.client(check_length=False) as client:
        client.join("a group")
        for request in GOOD_ROWS:
            rows, options = request["rows"], {k: v for k, v in request.items() if k != "rows"}
            with contextlib.suppress(ServingError, ValueError):
                client.encode(rows, **options)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://127.0.0.1:{server.port}")
        for frames in BAD_FRAMES:
            socket.send_multipart(frames)
            assert socket.poll(5_000 * SECOND), frames
            socket.recv_multipart()
        socket.send_multipart(HELLO)
        assert socket.poll(5_000 * SECOND)
    with old_wire(legacy_ports(server)) as wire:
        wire.subscribe(b"me")
        for frames in LEGACY_FRAMES:
            wire.send(*frames)
        for _ in range(8):
            wire.receive()


@pytest.mark.parametrize(("embedded", "log_format"), [(False, "text"), (True, "json")])
def test_no_part_of_a_sentence_is_logged_whatever_is_wrong_with_a_request(
    start_server: Starter, embedded: bool, log_format: str
) -> None:
    options = ("-verbose", "-legacy_port", "0", "-log_format", log_format)
    small = ("-max_batch_tokens", "512", "-cpu")  # nothing to calibrate
    server = start_server(*options, *(small if embedded else ()), embedded=embedded)
    send_all(server)
    server.terminate()
    assert server.wait() == exit_codes.OK
    assert server.log.count("a client sent what cannot be read") >= 10
    assert server.log.count("request ") >= 5
    assert MARK not in server.log
    assert not any(MARK[:4] in line for line in server.log.splitlines())


def test_in_json_every_role_writes_lines_with_the_same_fields(start_server: Starter) -> None:
    options = ("-verbose", "-legacy_port", "0", "-num_worker", "2", "-log_format", "json")
    server = start_server(*options)
    with old_wire(legacy_ports(server)) as wire:
        wire.send(b"me", b"TERMINATION", b"1", b"1")
        eventually(lambda: "TERMINATION" in server.log)
    assert answers(server)
    for line in lines(server):
        assert line.keys() >= {"time", "level", "role", "pid", "message"}
        assert (line["role"] == "worker") == ("worker" in line)
    assert {line["role"] for line in lines(server)} == {"server", "broker", "worker", "legacy"}
    (ready,) = [line["event"] for line in lines(server) if line["message"].startswith("ready ")]
    assert ready == json.loads(server.ready_file.read_text())
    server.stop()
    assert {line["level"] for line in lines(server)} >= {"info", "warning"}


def test_what_keeps_a_server_from_starting_is_its_last_line_in_json_too(
    start_server: Starter,
) -> None:
    server = start_server("-model_dir", "fake:384?boot=fail", "-log_format", "json", wait=False)
    assert server.wait() == exit_codes.BOOT_FAILED
    assert "told to fail" in lines(server)[-1]["message"]


def test_a_traceback_is_one_line_of_json(start_server: Starter) -> None:
    server = start_server("-log_format", "json")
    with server.client() as client, pytest.raises(ServingError):
        client.encode("fake:raise")
    (failed,) = [line for line in lines(server) if "traceback" in line]
    assert failed["role"] == "worker"
    assert "RuntimeError" in failed["traceback"]


def test_a_peer_cannot_forge_a_line(start_server: Starter) -> None:
    server = start_server("-verbose")
    forged = "\n2026-01-01 00:00:00 ERROR   server     forged\x1b[2J"
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"tcp://127.0.0.1:{server.port}")
        socket.send_multipart(encode_message({"type": "hello", "client": forged}))
        assert socket.poll(5_000 * SECOND)
    line = eventually(lambda: [line for line in server.log.splitlines() if "forged" in line])
    assert "hello from \\n2026" in line[0]
    assert "\x1b" not in server.log


# a log that cannot be written


@contextlib.contextmanager
def full_pipe(reader_is_gone: bool) -> Iterator[tuple[int, int]]:
    """Give both ends of a pipe that takes nothing more."""
    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, 4096)
    os.write(here, b"x" * 4095 + b"\n")
    if reader_is_gone:
        os.close(there)
    try:
        yield there, here
    finally:
        os.close(here)


def assert_lives_as_ever(server: ServerProcess) -> None:
    """Check that a server answers, replaces a worker, answers, and ends when told."""
    server.wait_ready()
    assert answers(server)
    before = server.worker_pids()
    os.kill(before[0], signal.SIGKILL)
    after = eventually(lambda: (now := server.worker_pids()) != before and now)
    assert after.keys() == before.keys()
    send_all(server)
    assert answers(server)
    server.terminate()
    assert server.wait() == exit_codes.OK
    eventually(lambda: not server.processes(), 5 * SECOND)


@pytest.mark.parametrize("what", ["full disk", "gone reader", "closed"])
def test_a_server_whose_log_cannot_be_written_lives_as_ever(
    start_server: Starter, what: str
) -> None:
    options = ("-legacy_port", "0", "-verbose")
    if what == "full disk":
        with Path("/dev/full").open("wb") as full:
            server = start_server(*options, stderr=full, wait=False)
    elif what == "gone reader":
        with full_pipe(reader_is_gone=True) as (_, here):
            server = start_server(*options, stderr=here, wait=False)
    else:
        prefix = ("sh", "-c", 'exec "$@" 2>&-', "sh")
        server = start_server(*options, prefix=prefix, wait=False)
    assert_lives_as_ever(server)


def test_a_log_that_nobody_reads_holds_up_no_role_and_is_whole_when_it_is_read(
    start_server: Starter,
) -> None:
    with full_pipe(reader_is_gone=False) as (there, here):
        server = start_server("-legacy_port", "0", stderr=here, wait=False)
    server.wait_ready()
    assert answers(server)
    send_all(server)
    log = os.read(there, 4096)
    while b"a client sent" not in log or b"ready native" not in log or b"request 3" not in log:
        log += os.read(there, 4096)  # of a server that lives: this ends, or the test's time does
    server.terminate()
    assert server.wait() == exit_codes.OK
    os.close(there)


def test_a_server_ends_although_nobody_reads_its_log(start_server: Starter) -> None:
    with full_pipe(reader_is_gone=False) as (there, here):
        server = start_server("-legacy_port", "0", "-verbose", stderr=here, wait=False)
    assert_lives_as_ever(server)
    os.close(there)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Give a disk of 64 KiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted only by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_and_gets_room_again_costs_only_lines(
    start_server: Starter, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with (disk / "log").open("ab") as log:
            server = start_server("-legacy_port", "0", "-log_format", "json", stderr=log)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1 << 20))
        with (disk / "log").open("ab") as log:
            log.write(b"x" * (-log.tell() % 4096))  # the log's last page has no room either
        send_all(server)
        assert answers(server)
        filler.unlink()
        eventually(lambda: b"log lines could not be written: No space left" in disk_log(disk))
        send_all(server)
        assert answers(server)
        server.stop()


def disk_log(disk: Path) -> bytes:
    return (disk / "log").read_bytes()
