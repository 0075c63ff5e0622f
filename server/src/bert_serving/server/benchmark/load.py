"""Puts a load on a server: clients in processes of their own, and what their calls took.

How many processes for so many clients? As many as there are cores, with the clients as
threads in them. 64 blocking clients of the fake model on two cores, which others used as well,
medians of three:

| processes | sentences/s, one a call | 64 a call | seconds to start |
| --- | --- | --- | --- |
| 1, of 64 threads | 2,670 | 132,000 | 0.3 |
| 2, of 32 threads | 5,410 | 161,000 | 0.3 |
| 4, of 16 threads | 5,400 | 116,000 | 0.5 |
| 64, of 1 thread | 2,580 | 64,500 | 6 to 20 |
| 2, of 32 asyncio clients | 5,840 | 180,000 | 0.3 |

In one process threads wait for the interpreter's lock, many take the server's cores. The
asyncio client would be a little lighter; the blocking one is what people call.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from bert_serving.server import exit_codes

from .clients import GO, READY, ClientsConfig
from .experiments import Load
from .machine import num_cores
from .measurement import Call

MAX_PROCESSES = 16
TURN_S = 0.1


class LoadFailed(Exception):
    """The clients could not do their calls; the message says why."""


def run_load(
    load: Load,
    *,
    address: tuple[str, int],
    words: Sequence[str],
    longest: int,
    check: Callable[[], None],
) -> list[Call]:
    """Have clients do their calls, all at the same time; returns every call.

    Args:
        load: what they do.
        address: host and port of the server.
        words: to make sentences of.
        longest: most words of a sentence where lengths are mixed.
        check: called often; what it raises ends the load.

    Raises:
        LoadFailed: a process of clients ended before its calls were done.

    """
    layers = None if load.pooling_layer is None else [load.pooling_layer]
    host, port = address
    configs = [
        ClientsConfig(
            host=host,
            port=port,
            clients=clients,
            client_batch_size=load.client_batch_size,
            num_repeat=load.num_repeat,
            layers=layers,
            words=words,
            sentence_words=load.sentence_words,
            longest=longest,
        )
        for clients in spread(load.num_client, num_cores())
    ]
    with _processes(configs) as processes, selectors.DefaultSelector() as selector:
        said = _Said(selector, processes, check)
        said.wait_until(lambda text: "\n" in text)
        for process in processes:
            _tell(process, GO)
        said.wait_until(lambda text: text.count("\n") == len((READY, "calls")))
        return [Call(**call) for text in said.texts for call in json.loads(text.split("\n")[1])]


def spread(num_client: int, cores: int) -> list[list[int]]:
    """Return the clients of each process."""
    num_processes = min(num_client, cores, MAX_PROCESSES)
    return [list(range(first, num_client, num_processes)) for first in range(num_processes)]


@contextmanager
def _processes(configs: Sequence[ClientsConfig]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes of clients for the time of the block; none outlives it."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for config in configs:
            process = subprocess.Popen(  # noqa: S603  # our own module
                [sys.executable, "-m", f"{__package__}.clients"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us, and we end them
            )
            processes.append(process)
            _tell(process, json.dumps(asdict(config)))
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            assert process.stdin is not None and process.stdout is not None
            process.stdout.close()
            process.stdin.close()


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(f"{line}\n".encode())
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended; reading from it says how


class _Said:
    """What the processes have written so far, read as it comes so that none has to wait."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        processes: Sequence[subprocess.Popen[bytes]],
        check: Callable[[], None],
    ) -> None:
        self._selector = selector
        self._processes = processes
        self._check = check
        self._read = [bytearray() for _ in processes]
        for number, process in enumerate(processes):
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ, number)

    @property
    def texts(self) -> list[str]:
        """What each process has written."""
        return [read.decode() for read in self._read]

    def wait_until(self, is_said: Callable[[str], bool]) -> None:
        """Wait until each process has said something; LoadFailed if one ends before."""
        while not all(map(is_said, self.texts)):
            for key, _ in self._selector.select(TURN_S):
                if chunk := os.read(key.fd, 1 << 16):
                    self._read[key.data] += chunk
                elif not is_said(self._read[key.data].decode()):
                    status = self._processes[key.data].wait()
                    raise LoadFailed(f"a process of clients {exit_codes.describe(status)}")
                else:
                    self._selector.unregister(key.fileobj)
            self._check()
