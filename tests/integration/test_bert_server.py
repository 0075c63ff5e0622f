"""A server started from Python is the daemon itself, and ends with whoever started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from server_process import BOOT_S, MARK, SECOND, eventually, marked_processes

from bert_serving.client import BertClient
from bert_serving.server import BertServer, ServerStartError, get_args_parser
from bert_serving.server.config import ServerConfig
from bert_serving.server.model.fake import fake_embedding
from bert_serving.server.termination import TerminationError

DIM = 16


def arguments(*options: str) -> Namespace:
    return get_args_parser().parse_args(["-model_dir", f"fake:{DIM}", "-port", "0", *options])


def assert_serves(server: BertServer) -> None:
    with BertClient(port=server.port, timeout=20_000 * SECOND) as client:
        assert np.array_equal(client.encode("a text"), fake_embedding("a text", DIM))


def test_a_server_lives_from_start_to_close() -> None:
    server = BertServer(arguments())
    assert not server.is_ready.is_set() and not server.is_alive()
    server.start(BOOT_S)
    assert server.is_ready.is_set() and server.is_alive()
    assert server.port == int(server.addresses["native"].rpartition(":")[2]) != 0
    assert_serves(server)
    with pytest.raises(RuntimeError, match="started already"):
        server.start()
    server.close()
    assert not server.is_ready.is_set() and not server.is_alive()
    server.close()


def test_a_server_may_be_a_context_and_take_a_config() -> None:
    with BertServer(ServerConfig(model_dir=f"fake:{DIM}", port=0, num_worker=2)) as server:
        assert_serves(server)
    assert not server.is_alive()


def test_what_keeps_a_server_from_starting_is_in_the_exception() -> None:
    server = BertServer(get_args_parser().parse_args(["-model_dir", "/no/such", "-port", "0"]))
    with pytest.raises(ServerStartError, match="/no/such"):
        server.start(BOOT_S)
    assert not server.is_alive()


def test_a_start_that_fails_leaves_the_file_of_the_server_that_has_the_port(
    tmp_path: Path,
) -> None:
    file = tmp_path / "ready.json"
    with BertServer(arguments("-ready_file", str(file))) as first:
        other = ServerConfig(model_dir=f"fake:{DIM}", port=first.port, ready_file=str(file))
        with pytest.raises(ServerStartError, match="in use"):
            BertServer(other).start(BOOT_S)
        assert json.loads(file.read_text()) == first.addresses
    assert not file.exists()


def test_a_server_that_is_not_ready_in_time_is_stopped() -> None:
    config = ServerConfig(model_dir=f"fake:{DIM}?boot_s=60", port=0)
    server = BertServer(config)
    with pytest.raises(ServerStartError, match=r"not ready within 0.5 s"):
        server.start(0.5)
    assert not server.is_alive()


def test_shutdown_stops_a_server_by_its_port() -> None:
    server = BertServer(arguments())
    server.start(BOOT_S)
    BertServer.shutdown(port=server.port, timeout=20_000 * SECOND)
    server.join(10 * SECOND)
    assert not server.is_alive()
    with pytest.raises(TerminationError, match="no server with port"):
        BertServer.shutdown(Namespace(ip="localhost", port=server.port, timeout=1000))
    with pytest.raises(TerminationError, match="only be stopped on its own machine"):
        BertServer.shutdown(ip="198.51.100.1")
    server.close()


def test_settings_that_contradict_each_other_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="contradict"):
        BertServer(arguments("-fp16", "-dtype", "bfloat16"))


def test_an_interrupt_of_the_caller_is_none_of_the_servers(tmp_path: Path) -> None:
    script = (
        "import signal, time\n"
        "from bert_serving.server import BertServer, get_args_parser\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # if it is ignored here\n"
        f"args = ['-model_dir', 'fake:{DIM}', '-port', '0']\n"
        "with BertServer(get_args_parser().parse_args(args)) as server:\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    except KeyboardInterrupt:\n"
        "        time.sleep(0.5)  # in which it would have ended\n"
        "        print(server.is_alive(), server.is_ready.is_set(), flush=True)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    os.killpg(owner.pid, signal.SIGINT)
    out, errors = owner.communicate(timeout=30 * SECOND)
    assert out == "True True\n"
    assert "second time" not in errors
    assert owner.returncode == 0


def test_a_server_that_has_ended_is_not_ready() -> None:
    server = BertServer(arguments())
    server.start(BOOT_S)
    os.kill(server.addresses["pid"], signal.SIGKILL)
    eventually(lambda: not server.is_alive())
    assert not server.is_ready.is_set()
    server.close()


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from bert_serving.server import BertServer, get_args_parser\n"
        f"args = ['-model_dir', 'fake:{DIM}', '-port', '0', '-ready_file', sys.argv[1]]\n"
        "BertServer(get_args_parser().parse_args(args)).start()\n"
        "time.sleep(600)\n"
    )
    ready = tmp_path / "ready.json"
    environment = {**os.environ, MARK: "owned"}
    owner = subprocess.Popen([sys.executable, "-c", script, str(ready)], env=environment)
    eventually(ready.exists, BOOT_S)
    assert len(marked_processes("owned")) >= 4  # owner, supervisor, broker, worker
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    eventually(lambda: not marked_processes("owned"), 15 * SECOND)
