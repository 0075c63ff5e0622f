"""A server for a long time: `soak.py MINUTES`. What it takes must not grow.

Every request comes from a new client, of ours or of bert-as-service, while all ports are probed
with garbage. After a warm-up of two minutes (a third of a shorter run), the memory of each process
(and of the clients' own) and the latency of a call in the first minute are compared with those of
the last: nothing may have grown by more than 5 %, and every answer must be right. It says
something on a machine that does nothing else: what processes share counts in parts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from account import Account, check
from clients import ask_legacy
from faults import garbage
from samples import Sample, between, figures, table
from scene import DIM, TIMEOUT_S, Scene, ServerProcess, embeddings, memory_kib, old_wire, texts_of

OPTIONS = ("-model_dir", f"fake:{DIM}?row_us=30", "-num_worker", "2", "-legacy_port", "0")
WARM_UP_S = 120.0  # tables that count the clients of a minute are full after two
SPAN_S = 60.0
SAMPLE_S = 5.0
ROWS = 12
THREADS = 3
PAUSE_S = 0.01
LEGACY_SHARE = 0.2


class Callers:
    """Threads that ask, each time as a new client, and how long each call has taken.

    All room for what they measure is taken beforehand: this process's memory is judged as well.

    Args:
        scene: the server, and the account.
        most: calls that there can be.

    """

    def __init__(self, scene: Scene, most: int) -> None:
        self._scene = scene
        self._latencies = np.full(most, np.nan, np.float32)
        self._taken = self._number = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(Random(f"{scene.seed} {number}"),))
            for number in range(THREADS)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all have ended."""
        for thread in self._threads:
            thread.join()

    def take(self) -> npt.NDArray[np.float32]:
        """Return the latencies since this was called last."""
        with self._lock:
            taken, self._taken = self._taken, self._number
        return self._latencies[taken : self._taken]

    def _ask_on(self, rng: Random) -> None:
        while not self._scene.stop.wait(PAUSE_S):
            if rng.random() < LEGACY_SHARE:
                self._ask_as_old_client(rng)
            else:
                self._ask(rng)

    def _ask(self, rng: Random) -> None:
        texts, started = texts_of(rng, 4), time.monotonic()
        with self._scene.account.asking("new client", TIMEOUT_S), self._scene.client() as client:
            check(client.encode(texts), embeddings(texts))
        with self._lock:
            self._latencies[self._number] = time.monotonic() - started
            self._number += 1

    def _ask_as_old_client(self, rng: Random) -> None:
        identity = b"soak-%d" % rng.randrange(1 << 40)
        with old_wire(self._scene.legacy) as wire:
            wire.subscribe(identity)
            ask_legacy(self._scene, wire, identity, b"1", texts_of(rng, 4))


def probe(scene: Scene) -> None:
    """Send garbage to every port now and then."""
    rng = Random(f"garbage {scene.seed}")
    while not scene.stop.wait(2.0):
        garbage(scene, rng)


def processes(scene: Scene) -> dict[str, int]:
    """Return the process id of each process of the server, by role, and of this one."""
    server = scene.server
    pids = {"clients": os.getpid(), "supervisor": server.pid}
    for role, part in (("broker", "server.broker"), ("gateway", "gateway.legacy")):
        (pids[role],) = server.processes(part)
    for number, pid in sorted(server.worker_pids().items()):
        pids[f"worker {number}"] = pid
    return pids


def sampled(scene: Scene, callers: Callers, seconds: float) -> list[Sample]:
    """Take samples for as long as the run lasts; the warm-up leaves none."""
    pids, started = processes(scene), time.monotonic()
    samples: list[Sample] = []
    scene.stop.wait(min(WARM_UP_S, seconds / 3))
    callers.take()
    while (at := time.monotonic() - started) < seconds:
        scene.stop.wait(SAMPLE_S)
        kib = {role: memory_kib(pid) for role, pid in pids.items()}
        samples.append(Sample(at, kib, callers.take()))
    return samples


def run(scene: Scene, seconds: float) -> list[Sample]:
    """Live through a run."""
    callers = Callers(scene, most=int(seconds * THREADS / PAUSE_S) + THREADS)
    prober = threading.Thread(target=probe, args=(scene,))
    prober.start()
    callers.start()
    try:
        return sampled(scene, callers, seconds)
    finally:
        scene.stop.set()
        callers.join()
        prober.join()
        scene.account.close()


def main() -> int:
    """Run as the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        os.environ.update(TMPDIR=folder, XDG_RUNTIME_DIR=folder)
        server = ServerProcess(OPTIONS, Path(folder))
        scene = Scene(server, Account(), seed=1)
        try:
            server.wait_ready()
            samples = run(scene, told.minutes * 60)
            answers = scene.still_answers()
            server.stop()
        finally:
            server.kill_all()
    begin, end = samples[0].at, samples[-1].at
    span = min(SPAN_S, (end - begin) / 3)
    found = list(figures(between(samples, begin, begin + span), between(samples, end - span, end)))
    print("\n".join(table(samples, ROWS)))
    print(f"\nthe first {span:.0f} s after a warm-up of {begin:.0f} s, and the last {span:.0f} s")
    print("\n".join(figure.line() for figure in found))
    print("\n".join(scene.account.lines()))
    is_fine = answers and scene.account.is_good and not any(f.has_grown for f in found)
    print("nothing has grown" if is_fine else "THIS IS NOT AS IT SHOULD BE")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
