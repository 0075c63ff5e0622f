"""A server under faults that strike at random: `chaos.py MINUTES SEED`.

Clients of every kind ask all the time, and every answer is checked bit for bit, while faults of
a table strike in an order and at times that the seed decides. In the end nothing may be wrong,
lost, or unanswered in time, the server must still answer, and nothing of it may be left over.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from account import MARGIN_S, Account
from clients import KINDS, live
from faults import FAULTS
from scene import DIM, TIMEOUT_S, Scene, ServerProcess

OPTIONS = (
    *("-model_dir", f"fake:{DIM}?row_us=30"),
    *("-batch_timeout", "2"),
    *("-legacy_port", "0"),
    *("-max_queue_rows", "20000"),
)
FIRST_FAULT_S = 2.0
TOLD_TO_FAIL = "RuntimeError: fake:raise: told to fail"  # the one traceback that belongs in a log


def schedule(
    seed: int, names: list[str], minutes: float, every_s: float
) -> Iterator[tuple[float, str]]:
    """Yield when which fault strikes, in seconds from the start."""
    rng = Random(f"schedule {seed}")
    at = FIRST_FAULT_S
    while at < minutes * 60:
        yield at, rng.choice(names)
        at += rng.expovariate(1 / every_s)


def clients(scene: Scene) -> list[threading.Thread]:
    """Start clients of every kind."""
    threads = []
    for name, (number, ask_on) in KINDS.items():
        for one in range(number):
            told = (scene, name, ask_on, f"{name} {one} {scene.seed}")
            threads.append(threading.Thread(target=live, args=told, name=name, daemon=True))
            threads[-1].start()
    return threads


def strike(scene: Scene, told: argparse.Namespace) -> None:
    """Let the faults happen, until the time is up or the server has ended."""
    started = time.monotonic()
    for number, (at, name) in enumerate(
        schedule(scene.seed, told.faults, told.minutes, told.every)
    ):
        scene.stop.wait(max(started + at - time.monotonic(), 0.0))
        if scene.server.process.poll() is not None:
            return
        print(f"{time.monotonic() - started:7.1f} s  {name}", flush=True)
        scene.faults[name] += 1
        FAULTS[name](scene, Random(f"{name} {number} {scene.seed}"))
    scene.stop.wait(max(started + told.minutes * 60 - time.monotonic(), 0.0))


def run(scene: Scene, told: argparse.Namespace) -> bool:
    """Live through a run; returns whether the server still answers."""
    threads = clients(scene)
    try:
        strike(scene, told)
    finally:
        scene.stop.set()
    deadline = time.monotonic() + TIMEOUT_S + MARGIN_S
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    scene.account.close()
    return scene.server.process.poll() is None and scene.still_answers()


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int)
    parser.add_argument("--with", nargs="+", choices=FAULTS, dest="faults", default=list(FAULTS))
    parser.add_argument("--without", nargs="+", choices=FAULTS, default=[])
    parser.add_argument(
        "--every",
        type=float,
        default=2.0,
        help="seconds between two faults; below one, workers die faster than others start",
    )
    parser.add_argument("--workers", type=int, default=3)
    told = parser.parse_args()
    told.faults = [name for name in told.faults if name not in told.without]
    return told


def main() -> int:
    """Run as the command line says; returns the exit status."""
    told = arguments()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        os.environ.update(TMPDIR=folder, XDG_RUNTIME_DIR=folder)
        server = ServerProcess([*OPTIONS, "-num_worker", str(told.workers)], Path(folder))
        scene = Scene(server, Account(), told.seed)
        try:
            server.wait_ready()
            answers = run(scene, told)
            server.stop()  # fails if anything of it outlives it
        finally:
            server.kill_all()
            has_traceback = server.log.count("Traceback") > server.log.count(TOLD_TO_FAIL)
            is_fine = scene.account.is_good and not has_traceback
            if not is_fine:
                print(server.log[-20_000:])
    print(f"\nseed {told.seed}, {told.minutes} minutes, {told.workers} workers")
    print("faults:", ", ".join(f"{name} {n}" for name, n in sorted(scene.faults.items())))
    print("\n".join(scene.account.lines()))
    print(f"the server {'still answers' if answers else 'NO LONGER ANSWERS'}")
    if has_traceback:
        print("there is a traceback in its log")
    return 0 if is_fine and answers else 1


if __name__ == "__main__":
    sys.exit(main())
