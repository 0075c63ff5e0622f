"""How a server starts, ends, and fails to start; and what its commands say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket as sockets
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from server_process import BOOT_S, COMMANDS, SECOND, ServerProcess, Starter, eventually

from bert_serving.client import BertClient
from bert_serving.client.errors import (
    DeadlineExceeded,
    RequestTimeout,
    Unavailable,
)
from bert_serving.server import control, exit_codes
from bert_serving.server.config import option_fields
from bert_serving.server.control import ControlError, ControlSocket
from bert_serving.server.model.fake import fake_embedding

DIM = 384
NO_MORE_PROCESSES = """
import errno, os, subprocess
start, begun = subprocess.Popen.__init__, []

def limited(self, *args, **options):
    begun.append(self)
    if len(begun) > 2:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    start(self, *args, **options)

subprocess.Popen.__init__ = limited
"""


def answers(client: BertClient, text: str = "a text", dim: int = DIM) -> bool:
    return np.array_equal(client.encode(text), fake_embedding(text, dim))


def run_command(name: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMANDS / name, *options],
        capture_output=True,
        text=True,
        timeout=30 * SECOND,
        env={**os.environ, **environment},
    )


@contextmanager
def a_long_call(server: ServerProcess, text: str = "fake:sleep 1.5") -> Iterator[Future[Any]]:
    """A call that a worker is busy with."""
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, text)
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        yield call


def own_sockets(control_folder: Path, server: ServerProcess) -> set[str]:
    """The names of the sockets that a server has there."""
    own = (f"{server.pid}-", f"port-{server.port}.")
    return {path.name for path in control_folder.iterdir() if path.name.startswith(own)}


def assert_failed_to_start(server: ServerProcess, cause: str) -> None:
    status = server.wait(BOOT_S)
    assert "Traceback" not in server.log, server.log
    assert cause in server.last_line, server.log
    assert status == exit_codes.BOOT_FAILED
    assert not server.processes()
    assert not server.ready_file.exists()


# ready


def test_a_ready_server_says_where_it_is_in_a_line_and_in_a_file(start_server: Starter) -> None:
    server = start_server("-num_worker", "2")
    addresses = json.loads(server.ready_file.read_text())
    assert addresses == {"native": f"tcp://127.0.0.1:{server.port}", "pid": server.pid}
    line = f"ready native=tcp://127.0.0.1:{server.port} pid={server.pid}\n"
    eventually(lambda: line in server.log)  # it is written after the file
    status = server.status()
    assert status["state"] == "ready"
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
    assert {worker["pid"] for worker in status["workers"]} == set(server.processes("server.worker"))


def test_the_ready_file_is_never_seen_half_written_or_stale(run_folder: Path) -> None:
    server = ServerProcess(["-model_dir", "fake:384?boot_s=0.5"], run_folder)
    server.ready_file.write_text("from the server before")
    try:
        eventually(lambda: not server.ready_file.exists())
        eventually(server.ready_file.exists, within=60 * SECOND)
        assert json.loads(server.ready_file.read_text())["pid"] == server.pid
        assert not list(run_folder.glob(f".{server.ready_file.name}*"))
    finally:
        server.stop()


def test_the_ready_file_goes_with_its_server(start_server: Starter) -> None:
    server = start_server()
    second = start_server(port=server.port, ready_file=server.ready_file, wait=False)
    assert second.wait(BOOT_S) == exit_codes.BOOT_FAILED
    assert json.loads(server.ready_file.read_text())["pid"] == server.pid
    server.terminate()
    assert server.wait() == exit_codes.OK
    assert not server.ready_file.exists()


def test_while_the_model_loads_clients_can_connect_and_wait(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?boot_s=2.5", wait=False)
    server.wait_bound()
    started = time.monotonic()
    with server.client() as client, server.client(timeout=300) as impatient:
        assert client.server_status["state"] == "starting"
        with pytest.raises(RequestTimeout, match=r"not ready within 200 ms.*log"):
            client.wait_ready(200)
        with pytest.raises(RequestTimeout, match=r"300 ms.*none of its workers is ready"):
            impatient.encode("too early")
        assert time.monotonic() - started < 2 * SECOND
        assert answers(client)
        client.wait_ready(1000)
        assert answers(impatient)


def test_two_servers_live_side_by_side(start_server: Starter) -> None:
    one, other = start_server("-model_dir", "fake:8"), start_server("-model_dir", "fake:16")
    with one.client() as client:
        assert answers(client, dim=8)
    assert run_command("bert-serving-terminate", "-port", str(one.port)).returncode == 0
    with other.client() as client:
        assert answers(client, dim=16)


# failing to start


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["-model_dir", "fake:384?boot=fail"], "told to fail"),
        (["-model_dir", "fake:no"], "expected fake:DIM"),
        (["-model_dir", "/nope/bert"], "/nope/bert"),
        (["-host", "203.0.113.7", "-allow_insecure"], "cannot listen on 203.0.113.7"),
        (["-host", "no host", "-allow_insecure"], "cannot listen on no host"),
        (["-device_map", "0", "-cpu"], "-cpu"),
        (["-pooling_layer", "-1", "99"], "99"),
        (["-legacy_port", "65535"], "-legacy_port_out 65536 is above 65535"),
        (["-legacy_port", "7", "-legacy_port_out", "7"], "-legacy_port_out are both 7: give each"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_start_ends_with_its_cause(
    start_server: Starter, options: list[str], cause: str
) -> None:
    assert_failed_to_start(start_server(*options, wait=False), cause)


def test_gpus_that_are_not_there_are_named(start_server: Starter) -> None:
    server = start_server("-device_map", "3", environment={"CUDA_VISIBLE_DEVICES": ""}, wait=False)
    assert_failed_to_start(server, "-device_map 3")


def test_a_corrupt_model_is_named(start_server: Starter, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": ')
    (tmp_path / "model.safetensors").write_bytes(b"\x07" * 100)
    assert_failed_to_start(start_server("-model_dir", str(tmp_path), wait=False), str(tmp_path))


def test_a_port_in_use_is_named(start_server: Starter) -> None:
    with sockets.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start_server(port=port, wait=False)
        assert_failed_to_start(server, f"port {port}: Address already in use")


def test_a_second_server_on_a_port_leaves_the_first_one_alone(start_server: Starter) -> None:
    first = start_server()
    second = start_server(port=first.port, wait=False)
    assert_failed_to_start(second, f"port {first.port}: Address already in use")
    with first.client() as client:
        assert answers(client)
    assert run_command("bert-serving-terminate", "-port", str(first.port)).returncode == 0


def test_a_port_is_one_servers_even_where_hosts_differ(start_server: Starter) -> None:
    first = start_server()
    second = start_server("-host", "127.0.0.2", port=first.port, wait=False)
    assert_failed_to_start(second, "give another -port, or end it")
    ended = run_command("bert-serving-terminate", "-port", str(first.port))
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")


def test_an_address_is_not_taken_from_who_listens_there(tmp_path: Path) -> None:
    file = tmp_path / "port-1.control"
    with zmq.Context() as context:
        first, second = ControlSocket(context), ControlSocket(context)
        first.bind(f"ipc://{file}")
        with pytest.raises(ControlError, match=f"{file} is in use"):
            second.bind(f"ipc://{file}")
        second.close()
        assert file.exists()
        first.close()
    assert not file.exists()


def test_a_control_file_that_was_left_behind_is_in_nobodys_way(start_server: Starter) -> None:
    killed = start_server()
    killed.process.kill()
    eventually(lambda: not killed.processes())
    server = start_server(port=killed.port)
    assert run_command("bert-serving-terminate", "-port", str(server.port)).returncode == 0


def test_a_folder_whose_name_is_too_long_for_sockets_is_named(
    start_server: Starter, tmp_path: Path
) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    server = start_server(environment={"XDG_RUNTIME_DIR": str(folder)}, wait=False)
    assert_failed_to_start(server, f"{folder}/bert-serving-{os.getuid()}: too long for the path")


def test_a_ready_file_that_cannot_be_written_is_named(
    start_server: Starter, tmp_path: Path
) -> None:
    path = tmp_path / "no" / "folder"
    server = start_server(environment={"BERT_SERVING_READY_FILE": str(path)}, wait=False)
    server.wait_ready()  # the command line wins
    other = start_server(wait=False, ready_file=path)
    assert_failed_to_start(other, str(path))


def test_a_worker_that_dies_while_it_first_loads_ends_the_server(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?boot_s=20", "-num_worker", "2", wait=False)
    server.wait_bound()
    with server.client() as client:
        workers = eventually(lambda: client.server_status["workers"])
    os.kill(workers[0]["pid"], signal.SIGKILL)
    assert_failed_to_start(server, f"worker {workers[0]['id']} cannot start: was ended by SIGKILL")


def test_a_system_without_another_process_to_give_is_named(
    start_server: Starter, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_MORE_PROCESSES)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    server = start_server("-num_worker", "2", environment={"PYTHONPATH": path}, wait=False)
    assert_failed_to_start(server, "a process cannot be started: Resource temporarily unavailable")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_control_folder_that_others_may_enter_is_refused(
    start_server: Starter, tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / f"bert-serving-{os.getuid()}"
    folder.mkdir()
    folder.chmod(mode)
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    server = start_server(environment=environment, wait=False)
    assert_failed_to_start(server, f"{folder} must be a folder of this user's")
    ended = run_command("bert-serving-terminate", "-port", "9", **environment)
    assert ended.returncode == exit_codes.FAILED
    assert str(folder) in ended.stderr


def test_a_control_folder_of_somebody_else_is_refused(
    start_server: Starter, tmp_path: Path
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a folder of somebody else's")
    folder = tmp_path / "bert-serving-0"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    server = start_server(environment={"XDG_RUNTIME_DIR": str(tmp_path)}, wait=False)
    assert_failed_to_start(server, str(folder))


def test_a_link_in_the_control_folders_place_is_refused(
    start_server: Starter, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"bert-serving-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    server = start_server(environment={"XDG_RUNTIME_DIR": str(tmp_path)}, wait=False)
    assert_failed_to_start(server, "must be a folder")


def test_the_control_folder_is_private_and_empty_after_the_end(
    start_server: Starter, control_folder: Path
) -> None:
    server = start_server()
    assert stat.S_IMODE(control_folder.stat().st_mode) == 0o700
    own = own_sockets(control_folder, server)
    kinds = {name.partition(".")[2] for name in own if name.startswith(f"{server.pid}-")}
    assert kinds == {"control", "backend", "frontend"}
    assert f"port-{server.port}.control" in own
    server.stop()
    assert not own_sockets(control_folder, server)


def test_servers_of_one_process_id_do_not_meet(start_server: Starter) -> None:
    """Those of containers that share the folder: the first process of each is number 1."""
    assert control.addresses(1).backend != control.addresses(1).backend


def test_what_lies_where_a_server_is_started_is_not_imported(
    start_server: Starter, tmp_path: Path
) -> None:
    for name in ("secrets", "numpy", "zmq"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')\n")
    there = ("sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path))
    server = start_server(prefix=there)
    with server.client() as client:
        assert answers(client)


def test_a_server_whose_sockets_were_removed_ends_when_it_cannot_replace_a_worker(
    start_server: Starter, run_folder: Path
) -> None:
    folder = run_folder / "logged-out"
    folder.mkdir(mode=0o700)
    server = start_server(environment={"XDG_RUNTIME_DIR": str(folder)})
    shutil.rmtree(folder)
    with server.client() as client:
        assert answers(client)
        os.kill(server.worker_pids()[0], signal.SIGKILL)
    assert server.wait() == exit_codes.BOOT_FAILED
    assert "worker 0 was ended by SIGKILL" in server.last_line
    assert f"somebody has removed {folder}" in server.last_line


# ending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_server_work_off_what_it_has(
    start_server: Starter, number: signal.Signals
) -> None:
    server = start_server()
    short = 300 * SECOND  # a client waits for another server in its place
    with server.client(timeout=short) as late, a_long_call(server) as call:
        os.kill(server.pid, number)
        eventually(lambda: late.server_status["state"] == "draining")
        with pytest.raises(Unavailable):
            late.encode("too late")
        with server.client(timeout=short) as newcomer, pytest.raises(Unavailable):
            newcomer.encode("too late")
        assert np.array_equal(call.result(), fake_embedding("fake:sleep 1.5", DIM))
    assert server.wait() == exit_codes.OK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_its_processes_is_one_to_the_server(
    start_server: Starter, number: signal.Signals
) -> None:
    server = start_server("-num_worker", "2")
    with a_long_call(server) as call:
        for pid in server.processes():  # as Ctrl-C does it, or a service manager
            os.kill(pid, number)
        assert np.array_equal(call.result(), fake_embedding("fake:sleep 1.5", DIM))
    assert server.wait() == exit_codes.OK
    assert "Traceback" not in server.log


def test_the_end_of_a_terminal_loads_the_model_anew_and_ends_nothing(
    start_server: Starter,
) -> None:
    server = start_server("-num_worker", "2")
    (broker,) = server.processes("server.broker")
    for pid in server.processes():
        os.kill(pid, signal.SIGHUP)
    eventually(lambda: "the change of workers is done" in server.log, 20 * SECOND)
    assert server.processes("server.broker") == [broker]
    assert "SIGHUP" not in server.log
    with server.client() as client:
        assert answers(client)


def test_signals_in_its_last_seconds_do_not_end_a_server_halfway(
    start_server: Starter, control_folder: Path
) -> None:
    server = start_server()
    os.kill(server.worker_pids()[0], signal.SIGSTOP)  # it is waited for, then killed
    while server.process.poll() is None:
        server.terminate()
        time.sleep(0.02)
    assert server.wait() == exit_codes.OK
    assert not server.processes()
    assert not own_sockets(control_folder, server)


def test_a_server_that_does_not_listen_yet_ends_when_told(start_server: Starter) -> None:
    server = start_server("-legacy_port", "0", "-legacy_port_out", "0", wait=False)
    eventually(lambda: server.processes("server.broker"))
    server.terminate()
    assert server.wait() == exit_codes.OK
    assert "Traceback" not in server.log


def test_a_second_signal_ends_the_server_at_once(start_server: Starter) -> None:
    server = start_server()
    with server.client(timeout=4_000) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, "fake:hang")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        server.terminate()
        eventually(lambda: server.status()["state"] == "draining")
        os.kill(server.pid, signal.SIGINT)  # the same one may be one wish, so soon
        assert server.wait(3 * SECOND) == exit_codes.FAILED
        assert not server.processes()
        with pytest.raises(Unavailable, match="stopped before"):
            call.result()


def test_draining_has_an_end(start_server: Starter) -> None:
    server = start_server("-drain_timeout", "0.5")
    with server.client(timeout=4_000) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, "fake:hang")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        server.terminate()
        server.wait(4 * SECOND)
        assert "not everything could be worked off" in server.log
        with pytest.raises(Unavailable, match="stopped before"):
            call.result()


def test_a_server_that_still_loads_ends_when_told(start_server: Starter) -> None:
    server = start_server("-model_dir", "fake:384?boot_s=20", wait=False)
    server.wait_bound()
    eventually(lambda: server.processes("server.worker"))
    server.terminate()
    assert server.wait(4 * SECOND) == exit_codes.OK


def test_the_terminate_command_ends_a_server_and_says_so(start_server: Starter) -> None:
    server = start_server()
    with a_long_call(server) as call:
        ended = run_command("bert-serving-terminate", "--port", str(server.port))
        assert np.array_equal(call.result(), fake_embedding("fake:sleep 1.5", DIM))
    assert (ended.returncode, ended.stderr) == (exit_codes.OK, "")
    assert ended.stdout == f"the server with port {server.port} has ended\n"
    assert server.wait(2 * SECOND) == exit_codes.OK


def test_a_second_terminate_command_waits_for_what_the_first_one_does(
    start_server: Starter,
) -> None:
    server = start_server()
    command = ("bert-serving-terminate", "-port", str(server.port))
    with a_long_call(server) as call, ThreadPoolExecutor(1) as pool:
        first = pool.submit(run_command, *command)
        eventually(lambda: server.status()["state"] == "draining")
        assert run_command(*command).returncode == exit_codes.OK
        assert first.result().returncode == exit_codes.OK
        assert np.array_equal(call.result(), fake_embedding("fake:sleep 1.5", DIM))
    assert server.wait() == exit_codes.OK


def test_the_terminate_command_waits_no_longer_than_told(start_server: Starter) -> None:
    server = start_server()
    with a_long_call(server, "fake:sleep 3"):
        ended = run_command("bert-serving-terminate", "-port", str(server.port), "-timeout", "500")
        assert ended.returncode == exit_codes.FAILED
        assert f"process {server.pid}) is stopping, but has not ended within 500 ms" in ended.stderr


def test_the_terminate_command_takes_a_killed_server_for_ended(start_server: Starter) -> None:
    server = start_server()
    with server.client(timeout=4_000) as client, ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.encode, "fake:hang")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        command = ("bert-serving-terminate", "-port", str(server.port))
        ended = pool.submit(run_command, *command)
        eventually(lambda: server.status()["state"] == "draining")
        os.kill(server.pid, signal.SIGKILL)
        assert ended.result(10 * SECOND).stdout == f"the server with port {server.port} has ended\n"
        with pytest.raises((RequestTimeout, DeadlineExceeded)):
            call.result()


def test_the_terminate_command_finds_no_server_where_there_is_none(start_server: Starter) -> None:
    with sockets.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        ended = run_command("bert-serving-terminate", "-port", str(port))
    assert ended.returncode == exit_codes.FAILED
    assert f"no server with port {port}" in ended.stderr
    server = start_server()
    os.kill(server.pid, signal.SIGKILL)
    ended = run_command("bert-serving-terminate", "-port", str(server.port))
    assert ended.returncode == exit_codes.FAILED
    assert f"port {server.port} does not answer" in ended.stderr


@pytest.mark.parametrize(
    "options", [("-ip", "192.0.2.1"), ("-port", "many"), ("-timeout", "x"), ("-timeout", "-1")]
)
def test_the_terminate_command_refuses_what_it_cannot_do(options: tuple[str, str]) -> None:
    ended = run_command("bert-serving-terminate", *options)
    assert ended.returncode == exit_codes.USAGE
    assert options[1] in ended.stderr


# the supervisor is lost


def test_a_killed_supervisor_leaves_no_process_behind(start_server: Starter) -> None:
    server = start_server("-num_worker", "2")
    with server.client(timeout=1_000) as client, ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.encode, "fake:hang")
        eventually(lambda: server.status()["statistic"]["requests_in_hand"] == 1)
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.processes(), 8 * SECOND)
        with pytest.raises((RequestTimeout, DeadlineExceeded)):
            call.result()


def test_a_supervisor_killed_while_the_model_loads_leaves_no_process_behind(
    start_server: Starter,
) -> None:
    server = start_server("-model_dir", "fake:384?boot_s=2", wait=False)
    server.wait_bound()
    eventually(lambda: server.processes("server.worker"))
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.processes(), 6 * SECOND)


# clients and restarts


def test_a_client_outlives_a_restart_of_its_server(start_server: Starter) -> None:
    server = start_server()
    with server.client() as client:
        assert answers(client)
        server.stop()
        successor = start_server("-model_dir", "fake:16", port=server.port)
        assert successor.port == server.port
        assert answers(client, dim=16)
        successor.process.kill()
        eventually(lambda: not successor.processes())
        start_server(port=server.port)
        assert answers(client)


def test_a_call_made_while_the_server_is_away_is_answered_when_it_is_back(
    start_server: Starter,
) -> None:
    server = start_server()
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        assert answers(client)
        server.stop()
        begun = threading.Event()

        def rows() -> Iterator[str]:
            begun.set()
            yield "a text"

        call = pool.submit(client.encode, rows())
        begun.wait(5 * SECOND)
        start_server(port=server.port)
        assert np.array_equal(call.result()[0], fake_embedding("a text", DIM))


# help


def test_help_names_every_option_in_both_spellings() -> None:
    shown = run_command("bert-serving-start", "-h", COLUMNS="400")
    assert (shown.returncode, shown.stderr) == (0, "")
    for entry in option_fields():
        assert f"-{entry.name}" in shown.stdout
        assert f"--{entry.name.replace('_', '-')}" in shown.stdout
    shown = run_command("bert-serving-terminate", "--help")
    assert shown.returncode == 0
    assert all(option in shown.stdout for option in ("-ip", "-port", "-timeout"))


def printed_to_nobody(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command into a pipe that nobody reads, as after `| head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [COMMANDS / command[0], *command[1:]],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=30 * SECOND,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize("command", ["bert-serving-start", "bert-serving-doctor"])
def test_help_can_be_printed_in_any_encoding_and_to_nobody(command: str) -> None:
    shown = run_command(command, "-h", PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (exit_codes.OK, "")
    assert printed_to_nobody(command, "-h").stderr == b""


def test_what_a_command_did_can_be_said_in_any_encoding_and_to_nobody(tmp_path: Path) -> None:
    command = ("bert-serving-keygen", "client", "-dir", str(tmp_path))
    made = run_command(*command, PYTHONIOENCODING="ascii")
    assert (made.returncode, made.stderr) == (exit_codes.OK, "")
    assert "BertClient(ip=?" in made.stdout
    unread = printed_to_nobody(*command[:2], "another", *command[2:])
    assert (unread.returncode, unread.stderr) == (exit_codes.FAILED, b"")
    closed = (
        "sh",
        "-c",
        '"$@" >&-',
        "sh",
        COMMANDS / command[0],
        *command[1:2],
        "third",
        *command[2:],
    )
    made_unsaid = subprocess.run(closed, stderr=subprocess.PIPE, timeout=30 * SECOND)
    assert (made_unsaid.returncode, made_unsaid.stderr) == (exit_codes.OK, b"")


@pytest.mark.parametrize("command", ["bert-serving-start", "bert-serving-terminate"])
def test_a_command_tells_its_version(command: str) -> None:
    for spelling in ("-version", "--version"):
        assert run_command(command, spelling).stdout.startswith("2.")


def test_a_wrong_option_ends_with_a_usage_message() -> None:
    wrong = run_command("bert-serving-start", "-port", "65536")
    assert wrong.returncode == exit_codes.USAGE
    assert "0 (any free one) to 65535" in wrong.stderr
