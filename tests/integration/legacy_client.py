"""The real client of bert-as-service, unmodified from PyPI, in a venv of its own.

Both packages are called `bert_serving.client`, so it cannot live beside ours. A test hands
its script to `run_old_client` and gets back what the script gives.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from server_process import SECOND, ServerProcess

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-legacy"
PACKAGE = "bert-serving-client==1.10.0"
RUN_S = 60 * SECOND

PROLOGUE = """
import json, os, signal, sys, threading, time, warnings
import numpy as np
from bert_serving.client import BertClient, ConcurrentBertClient

port, port_out, timeout, folder = *map(int, sys.argv[1:4]), sys.argv[4]
arrays, values = {}, {}

def give(**named):
    for name, value in named.items():
        (arrays if isinstance(value, np.ndarray) else values)[name] = value

def connect(kind=BertClient, **options):
    return kind(**{"port": port, "port_out": port_out, "timeout": timeout, **options})

def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

warnings.simplefilter("ignore")
"""
EPILOGUE = """
np.savez(folder + "/arrays.npz", **arrays)
with open(folder + "/values.json", "w") as file:
    json.dump(values, file)
"""


@cache
def old_python() -> Path:
    """Return the interpreter that has the old client; makes its venv if it is not there."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # tests of other files may want it at the same time
        return _made_venv()
    finally:
        os.close(folder)


def _made_venv() -> Path:
    constraints = ROOT / "constraints.txt"
    wanted = f"{PACKAGE} {sys.version_info[:2]} {constraints.read_text()}"
    python, made = VENV / "bin" / "python", VENV / "made"
    if not made.exists() or made.read_text() != wanted:
        commands: list[list[Any]] = [
            [sys.executable, "-m", "venv", "--clear", VENV],
            [python, "-m", "pip", "install", "-q", "-c", constraints, PACKAGE],
        ]
        for command in commands:
            made_it = subprocess.run(command, capture_output=True, text=True, timeout=240)
            assert made_it.returncode == 0, made_it.stderr
        made.write_text(wanted)
    return python


def legacy_ports(server: ServerProcess) -> tuple[int, int]:
    """Return where old clients send and receive."""
    addresses = json.loads(server.ready_file.read_text())["legacy"]
    port, port_out = (int(address.rpartition(":")[2]) for address in addresses)
    return port, port_out


def run_old_client(server: ServerProcess, folder: Path, script: str, *args: str) -> dict[str, Any]:
    """Run a script beside the old client; returns what it has given by name: `give(x=…)`.

    It makes clients with `connect(…)`, and finds further arguments in `sys.argv[5:]`.
    """
    ports = map(str, legacy_ports(server))
    file = folder / "script.py"
    file.write_text(PROLOGUE + script + EPILOGUE)
    timeout_ms = str(int(20_000 * SECOND))
    run = subprocess.run(
        [old_python(), "-I", file, *ports, timeout_ms, folder, *args],
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert run.returncode == 0, f"{run.stderr}\n{server.log}"
    with np.load(folder / "arrays.npz") as arrays:
        return {**arrays, **json.loads((folder / "values.json").read_text())}


class OldWire:
    """The old protocol without a client: what is sent is a test's own business."""

    def __init__(self, context: zmq.Context[Any], ports: tuple[int, int]) -> None:
        self.push: zmq.Socket[Any] = context.socket(zmq.PUSH)
        self.subscriber: zmq.Socket[Any] = context.socket(zmq.SUB)
        self.push.linger = self.subscriber.linger = 0
        self.push.connect(f"tcp://127.0.0.1:{ports[0]}")
        self._results = f"tcp://127.0.0.1:{ports[1]}"

    def subscribe(self, identity: bytes) -> None:
        """Subscribe, and connect for it."""
        self.subscriber.subscribe(identity)
        self.subscriber.connect(self._results)

    def send(self, *frames: bytes) -> None:
        """Send a message of these frames."""
        assert self.push.poll(10_000 * SECOND, zmq.POLLOUT), "the gateway takes nothing in"
        self.push.send_multipart(frames)

    def receive(self, within: float = 10 * SECOND) -> list[bytes]:
        """Return the next message."""
        assert self.subscriber.poll(within * 1000), f"no answer within {within} s"
        return self.subscriber.recv_multipart()


@contextmanager
def old_wire(ports: tuple[int, int]) -> Iterator[OldWire]:
    """The two sockets of an old client, for as long as the block."""
    with zmq.Context() as context:
        wire = OldWire(context, ports)
        with wire.push, wire.subscriber:
            yield wire
