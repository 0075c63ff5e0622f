"""What a service manager hears that does not listen all the time."""

from __future__ import annotations

import socket as sockets
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_serving.server.service_manager import ServiceManager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[sockets.socket]:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as socket:
        socket.bind(str(tmp_path / "notify"))
        socket.setblocking(False)
        yield socket


def manager_at(listener: sockets.socket) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "2000000"})


def heard(listener: sockets.socket) -> list[str]:
    lines: list[str] = []
    while True:
        try:
            lines += listener.recv(4096).decode().split("\n")
        except BlockingIOError:
            return lines


def test_signs_of_life_come_at_half_the_watchdogs_time(listener: sockets.socket) -> None:
    manager = manager_at(listener)
    for now in (0.0, 0.5, 1.0, 1.9, 2.0):
        manager.beat(now)
    assert heard(listener) == ["WATCHDOG=1"] * 3


def test_what_a_full_manager_has_no_room_for_it_is_told_later(listener: sockets.socket) -> None:
    manager = manager_at(listener)
    for now in range(1000):  # more than any queue takes
        manager.beat(float(now))
    manager.is_ready()
    manager.is_reloading()
    manager.beat(2000.0)
    assert set(heard(listener)) == {"WATCHDOG=1"}
    manager.advance()
    assert [line for line in heard(listener) if "1" in line and "USEC" not in line] == [
        "READY=1", "RELOADING=1",
    ]  # fmt: skip
    manager.beat(2000.0)
    assert heard(listener) == ["WATCHDOG=1"]


def test_a_manager_that_never_reads_costs_no_memory(listener: sockets.socket) -> None:
    manager = manager_at(listener)
    for now in range(1000):
        manager.beat(float(now))
    for _ in range(100):
        manager.is_reloading()
        manager.is_ready()
    told: list[str] = []
    while lines := heard(listener):
        told += lines
        manager.advance()
    assert told[-2:] == ["READY=1", "STATUS=serving"]
    assert told.count("READY=1") == 8


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "@nobody-listens"])
def test_a_manager_that_is_not_there_is_told_nothing(address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"})
    manager.is_ready()
    manager.beat(1.0)
    manager.advance()
    manager.is_stopping()
