"""Administration by the native port: with a key in -admin_keys, and with no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from key_files import KeyFiles, new_keys
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.server import exit_codes
from bert_serving.server.model.fake import fake_embedding

DIM = 384
REFUSED = "administration needs a key in -admin_keys"


@pytest.fixture
def keys(tmp_path: Path) -> KeyFiles:
    return new_keys(tmp_path)


@pytest.fixture
def alice(keys: KeyFiles) -> dict[str, Any]:
    """A client, who is no administrator."""
    return keys.add("alice")


@pytest.fixture
def root(keys: KeyFiles) -> dict[str, Any]:
    """An administrator, whose key is not among the clients'."""
    return keys.add_admin("root")


@pytest.fixture
def server(
    start_server: Starter, keys: KeyFiles, alice: dict[str, Any], root: dict[str, Any]
) -> ServerProcess:
    assert keys.public("alice").exists() and keys.admin("root").exists()
    return start_server(*keys.options, *keys.admin_options)


def run(command: str, *args: object, **keys: str) -> subprocess.CompletedProcess[str]:
    """Run a command as on a machine where this user has no server."""
    told = [part for name, file in keys.items() for part in (f"-{name}", file)]
    return subprocess.run(
        [sys.executable, "-m", f"bert_serving.server.cli.{command}", *map(str, args), *told],
        capture_output=True,
        text=True,
        timeout=60 * SECOND,
        env={**os.environ, "XDG_RUNTIME_DIR": "/nowhere", "TMPDIR": "/nowhere"},
    )


def admin(
    server: ServerProcess, command: str, *args: object, **keys: str
) -> subprocess.CompletedProcess[str]:
    where = ("-ip", "127.0.0.1", "-port", server.port)
    return run("admin", command, *args, *where, **keys)


def assert_answers(server: ServerProcess, client: dict[str, Any]) -> None:
    with server.client(**client) as bert_client:
        np.testing.assert_array_equal(bert_client.encode("a"), fake_embedding("a", DIM))


def assert_refused(ended: subprocess.CompletedProcess[str]) -> None:
    assert (ended.returncode, ended.stdout) == (exit_codes.FAILED, "")
    assert REFUSED in ended.stderr


def test_an_administrator_asks_and_changes_from_elsewhere(
    server: ServerProcess, alice: dict[str, Any], root: dict[str, Any]
) -> None:
    ended = admin(server, "status", "--json", **root)
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    status = json.loads(ended.stdout)
    assert status["pid"] == server.pid
    assert status["broker"]["num_worker"] == 1
    (old,) = server.processes("server.worker")

    ended = admin(server, "reload", **root)
    assert (ended.returncode, ended.stdout) == (exit_codes.OK, "done: 1 workers changed\n")
    assert old not in server.processes()

    ended = admin(server, "scale", 2, **root)
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    assert len(server.processes("server.worker")) == 2
    assert "root asks for scale" in server.log
    assert_answers(server, alice)
    assert_answers(server, root)


def test_a_command_that_fails_says_so_from_elsewhere(
    server: ServerProcess, root: dict[str, Any]
) -> None:
    ended = admin(server, "reload", "-model_dir", "/no/such/model", **root)
    assert (ended.returncode, ended.stdout) == (exit_codes.FAILED, "")
    assert "/no/such/model" in ended.stderr
    assert_answers(server, root)


def test_a_clients_key_is_refused_and_that_is_one_line(
    server: ServerProcess, alice: dict[str, Any]
) -> None:
    for command in (["status"], ["scale", 2], ["reload"], ["terminate"]):
        assert_refused(admin(server, *command, **alice))
    (line,) = [line for line in server.log.splitlines() if REFUSED in line]
    assert "refused alice" in line
    assert len(server.processes("server.worker")) == 1
    assert_answers(server, alice)


def test_a_removed_administrator_is_shut_out_within_seconds(
    server: ServerProcess, keys: KeyFiles, alice: dict[str, Any], root: dict[str, Any]
) -> None:
    with server.client(**root) as client:
        client.encode("a")
        keys.admin("root").unlink()
        eventually(lambda: "root is not allowed any more" in server.log, 5 * SECOND)
    ended = admin(server, "status", **root)
    assert (ended.returncode, ended.stdout) == (exit_codes.FAILED, "")
    assert "refuses this client's key" in ended.stderr
    assert_answers(server, alice)


def test_an_administrator_who_is_a_client_as_well_stays_one(
    start_server: Starter, keys: KeyFiles, alice: dict[str, Any]
) -> None:
    keys.admin("alice").write_bytes(keys.public("alice").read_bytes())
    server = start_server(*keys.options, *keys.admin_options)
    assert admin(server, "status", **alice).returncode == exit_codes.OK
    keys.admin("alice").unlink()
    eventually(lambda: "0 keys in" in server.log, 5 * SECOND)
    assert_refused(admin(server, "status", **alice))
    assert_answers(server, alice)


def test_nobody_administers_a_server_without_admin_keys(
    start_server: Starter, keys: KeyFiles, alice: dict[str, Any], root: dict[str, Any]
) -> None:
    server = start_server(*keys.options)
    assert_refused(admin(server, "scale", 2, **alice))
    assert "refuses this client's key" in admin(server, "status", **root).stderr
    assert_answers(server, alice)


def test_a_command_ends_when_the_broker_is_lost_meanwhile(
    start_server: Starter, keys: KeyFiles, root: dict[str, Any]
) -> None:
    slow = ("-model_dir", f"fake:{DIM}?boot_s=4")
    server = start_server(*slow, *keys.options, *keys.admin_options)
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(admin, server, "reload", **root)
        eventually(lambda: "in every worker anew" in server.log)
        (broker,) = server.processes("server.broker")
        os.kill(broker, signal.SIGKILL)
        ended = change.result(20 * SECOND)
    assert ended.returncode == exit_codes.FAILED
    assert "ask for its status" in ended.stderr
    eventually(lambda: "the change of workers is done" in server.log, 20 * SECOND)
    assert_answers(server, root)


@pytest.mark.parametrize("command", ["admin", "terminate"])
def test_an_administrator_ends_a_server_from_elsewhere(
    server: ServerProcess, root: dict[str, Any], command: str
) -> None:
    with ThreadPoolExecutor(1) as pool, server.client(**root) as client:
        call = pool.submit(client.encode, f"fake:sleep {SECOND}")
        eventually(lambda: client.server_status["statistic"]["requests_in_hand"] == 1)
        words = ("terminate",) if command == "admin" else ()
        ended = run(command, *words, "-ip", "127.0.0.1", "-port", server.port, **root)
        assert np.array_equal(call.result(), fake_embedding(f"fake:sleep {SECOND}", DIM))
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    assert ended.stdout == f"the server with port {server.port} has ended\n"
    assert server.wait(5 * SECOND) == exit_codes.OK


@pytest.mark.parametrize("command", ["admin", "terminate"])
def test_another_machine_without_keys_is_a_usage_error(command: str) -> None:
    words = ("status",) if command == "admin" else ()
    ended = run(command, *words, "-ip", "192.0.2.1")
    assert ended.returncode == exit_codes.USAGE
    assert "192.0.2.1: without -server_key and -client_cert" in ended.stderr


def test_a_server_that_is_not_there_is_said_so(root: dict[str, Any]) -> None:
    ended = run("admin", "status", "-ip", "127.0.0.1", "-port", 1, **root)
    assert (ended.returncode, ended.stdout) == (exit_codes.FAILED, "")
    assert "nothing listens there" in ended.stderr
