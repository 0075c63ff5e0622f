"""Puts a load on a server: clients in processes of their own, and what their calls took.

256 clients need neither 256 processes nor 256 connections. On two cores, the fake model,
one sentence a call, what a call cost clients and server:

| clients | how | calls/s | µs of clients | µs of server |
| --- | --- | --- | --- | --- |
| 256 | 2 processes of 128 threads, blocking client | 4,870 | 220 | 183 |
| 256 | 1 process, asyncio client, a connection each | 6,020 | 172 | 133 |
| 256 | 1 process, asyncio client, a connection for 8 | 10,430 | 89 | 89 |
| 256 | 2 processes, likewise | 7,110 | 111 | 164 |
| 32 | 2 processes of 16 threads, blocking client | 5,750 | 171 | 170 |
| 32 | 1 process, asyncio client, a connection each | 5,410 | 167 | 168 |
| 32 | 1 process, asyncio client, a connection for 8 | 6,480 | 104 | 149 |

In bulk (4 clients, 4,096 sentences a call) all of them reached 370,000 to 400,000 sentences/s
and took 0.4 to 0.5 cores. So: asyncio, at most half of the cores, and few connections that
clients share as the tasks of an application do. How many cores the clients kept busy stands
beside every result: what they take, the server does not get.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bert_serving.server import exit_codes
from bert_serving.server.interpreter import module_command

from .clients import GO, ClientsConfig
from .experiments import Load
from .machine import num_cores
from .measurement import Call
from .targets import Target

MAX_PROCESSES = 16
MAX_CONNECTIONS = 8
TURN_S = 0.1


class LoadFailed(Exception):
    """The clients could not do their calls; the message says why."""


@dataclass(frozen=True)
class LoadResult:
    """What a load gave.

    Attributes:
        calls: of its clients.
        beside: of those beside it.
        client_cores: how many cores the clients' processes kept busy, on average.
        server_cores: likewise the server's; None if not known.

    """

    calls: list[Call]
    beside: list[Call]
    client_cores: float
    server_cores: float | None


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """What the clients' sentences are made of: the words, and most of them in a sentence."""

    words: Sequence[str]
    longest: int


def run_load(
    load: Load,
    *,
    target: Target,
    sentences: Sentences,
    check: Callable[[], None],
    server_cpu_s: Callable[[], float | None] = lambda: None,
) -> LoadResult:
    """Have clients do their calls, all at the same time.

    Args:
        load: what they do.
        target: the server.
        sentences: what they send.
        check: called often; what it raises ends the load.
        server_cpu_s: returns the processor time that the server has taken so far.

    Raises:
        LoadFailed: a process of clients ended before its calls were done.

    """
    own = _configs(load, target, sentences)
    configs = own if load.beside is None else [*own, *_configs(load.beside, target, sentences)]
    with _processes(configs) as processes, selectors.DefaultSelector() as selector:
        said = _Said(selector, processes, check)
        said.wait_for_lines(1)
        started, cpu_s = time.monotonic(), server_cpu_s()
        for process in processes:
            _tell(process, GO)
        said.wait_for_lines(2)
        server_cores = _cores(cpu_s, server_cpu_s(), time.monotonic() - started)
        said.wait_for_lines(3)
        lines = [text.split("\n") for text in said.texts]
    calls = [[Call(*call) for call in json.loads(written)] for _, _, written, *_ in lines]
    return LoadResult(
        calls=[call for process in calls[: len(own)] for call in process],
        beside=[call for process in calls[len(own) :] for call in process],
        client_cores=sum(float(cores) for _, cores, *_ in lines),
        server_cores=server_cores,
    )


def spread(num_client: int, cores: int) -> list[list[list[int]]]:
    """Return for each process the clients of each of its connections."""
    num_processes = min(num_client, max(cores // 2, 1), MAX_PROCESSES)
    num_connections = min(num_client, max(MAX_CONNECTIONS, num_processes))
    connections = [list(range(i, num_client, num_connections)) for i in range(num_connections)]
    return [connections[i::num_processes] for i in range(num_processes)]


def _configs(load: Load, target: Target, sentences: Sentences) -> list[ClientsConfig]:
    processes = spread(load.num_client, num_cores())
    return [
        ClientsConfig(
            target=target,
            clients=clients,
            client_batch_size=load.client_batch_size,
            num_repeat=load.num_repeat,
            seconds=load.seconds,
            rate=None if load.rate is None else load.rate / len(processes),
            delay_s=load.delay_s,
            layers=None if load.pooling_layer is None else [load.pooling_layer],
            words=sentences.words,
            sentence_words=load.sentence_words,
            longest=sentences.longest,
        )
        for clients in processes
    ]


def _cores(before_s: float | None, after_s: float | None, seconds: float) -> float | None:
    """Return how many cores were busy; None if not known, or if the server was replaced."""
    if before_s is None or after_s is None or after_s < before_s:
        return None
    return (after_s - before_s) / seconds


@contextmanager
def _processes(configs: Sequence[ClientsConfig]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes of clients for the time of the block; none outlives it."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for config in configs:
            process = subprocess.Popen(  # noqa: S603  # our own module
                module_command(f"{__package__}.clients"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us, and we end them
            )
            processes.append(process)
            _tell(process, config.to_json())
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

    def wait_for_lines(self, count: int) -> None:
        """Wait until each process has said so many lines; LoadFailed if one ends before."""
        while not all(self._has_said(number, count) for number in range(len(self._read))):
            for key, _ in self._selector.select(TURN_S):
                if chunk := os.read(key.fd, 1 << 16):
                    self._read[key.data] += chunk
                elif not self._has_said(key.data, count):
                    status = self._processes[key.data].wait()
                    raise LoadFailed(f"a process of clients {exit_codes.describe(status)}")
                else:
                    self._selector.unregister(key.fileobj)
            self._check()

    def _has_said(self, number: int, count: int) -> bool:
        return self._read[number].count(b"\n") >= count
