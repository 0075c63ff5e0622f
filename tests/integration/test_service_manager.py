"""What a server tells the service manager that started it, and the unit file for systemd."""

from __future__ import annotations

import os
import shutil
import signal
import socket as sockets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import SECOND, Starter, eventually

from bert_serving.server import exit_codes

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "bert-serving.service"


class Manager:
    """A service manager's socket, and all that has come by it."""

    def __init__(self, socket: sockets.socket, address: str) -> None:
        self._socket = socket
        self._heard: list[str] = []
        self.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(4e5 * SECOND))}

    @property
    def heard(self) -> list[str]:
        while True:
            try:
                self._heard += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self._heard

    def times(self, line: str) -> int:
        return self.heard.count(line)


@pytest.fixture(params=["a file", "no file"])
def manager(run_folder: Path, request: pytest.FixtureRequest) -> Iterator[Manager]:
    path = run_folder / f"notify-{os.getpid()}"
    is_file = request.param == "a file"
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as socket:
        socket.bind(str(path) if is_file else f"\0{path}")
        socket.setblocking(False)
        yield Manager(socket, str(path) if is_file else f"@{path}")
    path.unlink(missing_ok=True)


def test_a_service_manager_is_told_of_the_servers_life(
    start_server: Starter, manager: Manager
) -> None:
    server = start_server("-model_dir", "fake:8?boot_s=0.5", environment=manager.environment)
    eventually(lambda: manager.times("READY=1"))
    eventually(lambda: manager.times("WATCHDOG=1") > 3)
    os.kill(server.pid, signal.SIGHUP)
    eventually(lambda: manager.times("RELOADING=1"))
    assert any(line.startswith("MONOTONIC_USEC=") for line in manager.heard)
    eventually(lambda: manager.times("READY=1") == 2)
    assert "STOPPING=1" not in manager.heard
    server.terminate()
    assert server.wait() == exit_codes.OK
    assert manager.times("STOPPING=1") == 1


def test_the_watchdog_starves_while_the_broker_is_silent(
    start_server: Starter, manager: Manager
) -> None:
    server = start_server(environment=manager.environment)
    (broker,) = server.processes("server.broker")
    os.kill(broker, signal.SIGSTOP)

    eventually(lambda: is_starving(manager), 8 * SECOND)
    os.kill(broker, signal.SIGCONT)
    before = manager.times("WATCHDOG=1")
    eventually(lambda: manager.times("WATCHDOG=1") > before + 2)
    with server.client() as client:
        assert client.encode("still there?").shape == (384,)


def is_starving(manager: Manager) -> bool:
    """Whether beats that were due have not come."""
    before = manager.times("WATCHDOG=1")
    try:
        eventually(lambda: manager.times("WATCHDOG=1") > before, 1 * SECOND)
    except AssertionError:
        return True
    return False


def test_the_unit_file_is_what_systemd_takes(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    for command in ("start", "admin"):  # where this machine has them
        installed = shutil.which("true")
        text = text.replace(f"/opt/bert-serving/bin/bert-serving-{command}", str(installed))
    unit.write_text(text)
    checked = subprocess.run(
        [analyze, "verify", "--man=no", "--generators=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert checked.returncode == 0, checked.stderr
    assert unit.name not in checked.stderr
