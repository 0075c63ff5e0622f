"""What goes wrong: a table of faults, each a function that makes it happen once."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

import msgpack
import zmq
from account import WrongAnswer
from scene import COMMANDS, TIMEOUT_S, Scene

from bert_serving.client import BertClient
from bert_serving.client.errors import DeadlineExceeded, WorkerFailed
from bert_serving.client.frames import VERSION_FRAME, encode_message

Fault: TypeAlias = Callable[[Scene, Random], None]

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
"""How a ZMTP 3.1 peer begins."""

CONNECTIONS = 200
FEW_DESCRIPTORS = 24


def _signal(scene: Scene, rng: Random, role: str, number: signal.Signals) -> bool:
    """Send a signal to a process of a role; returns whether there was one."""
    pids = sorted(scene.server.processes(role))
    if not pids:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(pids), number)
    return True


def kill_worker(scene: Scene, rng: Random) -> None:
    """A worker is killed."""
    _signal(scene, rng, "server.worker", signal.SIGKILL)


def stop_worker(scene: Scene, rng: Random) -> None:
    """A worker is stopped in the middle of whatever it does, and never goes on."""
    _signal(scene, rng, "server.worker", signal.SIGSTOP)


def pause_worker(scene: Scene, rng: Random) -> None:
    """A worker stands still for less time than a batch may take."""
    pids = sorted(scene.server.processes("server.worker"))
    if pids:
        pid = rng.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.5)
            os.kill(pid, signal.SIGCONT)


def kill_gateway(scene: Scene, rng: Random) -> None:
    """The gateway is killed, with all that it has open."""
    scene.note_death("gateway")
    _signal(scene, rng, "gateway.legacy", signal.SIGKILL)


def kill_broker(scene: Scene, rng: Random) -> None:
    """The broker is killed, with all that it has queued."""
    scene.note_death("broker")
    _signal(scene, rng, "server.broker", signal.SIGKILL)


def reload(scene: Scene, _: Random) -> None:
    """All workers are replaced, one by one."""
    scene.server.process.send_signal(signal.SIGHUP)


def scale(scene: Scene, rng: Random) -> None:
    """Another number of workers is wanted; a change that is still going on may refuse it."""
    command = [COMMANDS / "bert-serving-admin", "scale", str(rng.randint(2, 4))]
    options = ["-port", str(scene.server.port), "-timeout", "20"]

    def ask() -> None:
        subprocess.run([*command, *options], capture_output=True, timeout=TIMEOUT_S)

    threading.Thread(target=ask, daemon=True).start()


def _poison(text: str) -> Fault:
    def strike(scene: Scene, _: Random) -> None:
        threading.Thread(target=ask, args=(scene,), daemon=True).start()

    def ask(scene: Scene) -> None:
        with scene.account.asking("poison", TIMEOUT_S):
            try:
                with scene.client(ignore_all_checks=True) as client:
                    client.encode(text)
            except (WorkerFailed, DeadlineExceeded):
                return
            raise WrongAnswer(f"{text} was answered")

    strike.__doc__ = f"A row {text} arrives, on which the model fails."
    return strike


hang, crash, refuse = _poison("fake:hang"), _poison("fake:crash"), _poison("fake:raise")


def garbage(scene: Scene, rng: Random) -> None:
    """Bytes that mean nothing arrive at every port, outside and inside of ZeroMQ."""
    for port in (scene.server.port, *scene.legacy):
        for _ in range(5):
            begin = rng.choice([b"", GREETING, GREETING[:20], b"GET / HTTP/1.1\r\n\r\n"])
            with (
                contextlib.suppress(OSError),
                sockets.create_connection(("127.0.0.1", port), 1) as peer,
            ):
                peer.sendall(begin + rng.randbytes(rng.randrange(5_000)))
    kinds = {scene.server.port: zmq.DEALER, scene.legacy[0]: zmq.PUSH, scene.legacy[1]: zmq.SUB}
    with zmq.Context() as context:
        for port, kind in kinds.items():
            _babble(context, port, kind, rng)


def _babble(context: zmq.Context[Any], port: int, kind: int, rng: Random) -> None:
    with context.socket(kind) as socket:
        socket.linger = 100
        socket.connect(f"tcp://127.0.0.1:{port}")
        if kind == zmq.SUB:
            for _ in range(20):
                socket.subscribe(rng.randbytes(rng.randrange(200)))
            return
        for _ in range(50):
            frames = [rng.randbytes(rng.randrange(100)) for _ in range(rng.randrange(1, 6))]
            header = {"type": rng.choice(["encode", "cancel", "hello", "x"]), "id": rng.random()}
            frames = rng.choice([
                frames, [VERSION_FRAME, *frames], [*encode_message(header), *frames],
                [VERSION_FRAME, msgpack.packb(["x"] * 1000)],
            ])  # fmt: skip
            with contextlib.suppress(zmq.Again):
                socket.send_multipart(frames, zmq.NOBLOCK)


def connections(scene: Scene, _: Random) -> None:
    """Hundreds connect, say nothing, and stay for a while."""
    peers = []
    with contextlib.ExitStack() as stack:
        for _number in range(CONNECTIONS):
            with contextlib.suppress(OSError):
                address = ("127.0.0.1", scene.server.port)
                peers.append(stack.enter_context(sockets.create_connection(address, 1)))
        scene.stop.wait(2.0)


def descriptors(scene: Scene, _: Random) -> None:
    """A client's process has no file descriptor left: its calls end all the same."""
    command = [sys.executable, __file__, str(scene.server.port)]
    with scene.account.asking("few descriptors", TIMEOUT_S):
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        if run.returncode != 0:
            raise WrongAnswer(run.stderr[-300:])


def _use_up_descriptors(port: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, FEW_DESCRIPTORS))
    clients = []
    with contextlib.suppress(Exception):
        for _ in range(FEW_DESCRIPTORS):
            clients.append(BertClient(port=port, timeout=2_000, connect_timeout=2_000))
            clients[-1].encode("a text")
    for client in clients:
        client.close()


FAULTS: dict[str, Fault] = {
    "kill-worker": kill_worker,
    "stop-worker": stop_worker,
    "pause-worker": pause_worker,
    "hang": hang,
    "crash": crash,
    "raise": refuse,
    "kill-gateway": kill_gateway,
    "kill-broker": kill_broker,
    "reload": reload,
    "scale": scale,
    "garbage": garbage,
    "connections": connections,
    "descriptors": descriptors,
}

if __name__ == "__main__":
    _use_up_descriptors(int(sys.argv[1]))
