"""A model without a server: `bare` in a process of its own, asked by whoever measures."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import exit_codes
from .interpreter import module_command
from .roles import WorkerConfig, to_json

LOAD_S, ANSWER_S = 300.0, 60.0
POLL_S = 0.1


class BareModelError(Exception):
    """The model cannot be loaded, or does not answer; the message says why."""


class BareModel:
    """A model that has been started, ready or not.

    Args:
        process: of `bare`.
        check: called often while an answer is waited for; what it raises ends the wait.

    """

    def __init__(self, process: subprocess.Popen[bytes], check: Callable[[], None]) -> None:
        self._process = process
        self._check = check

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def load(self, config: WorkerConfig) -> None:
        """Have it load what a worker would be told to load."""
        self._write(to_json(config))

    def wait_loaded(self) -> None:
        """Wait until it can be asked.

        Raises:
            BareModelError: it cannot be loaded.

        """
        self._hear(LOAD_S)

    def p50_ms(self, text: str, seconds: float) -> float:
        """Return what encoding a text takes, tried for so long."""
        self._write(json.dumps({"text": text, "seconds": seconds}))
        return float(self._hear(seconds + ANSWER_S)["p50_ms"])

    def start_computing(self, seconds: float) -> None:
        """Have it compute for so long; `tokens_per_s` is for what it reached."""
        self._write(json.dumps({"seconds": seconds}))

    def tokens_per_s(self, seconds: float) -> float:
        """Return the rate of what `start_computing` has started."""
        return float(self._hear(seconds + ANSWER_S)["tokens_per_s"])

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: reading says so
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def _hear(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while not select.select([self._process.stdout], [], [], POLL_S)[0]:
            self._check()
            if time.monotonic() >= deadline:
                raise BareModelError(f"the model alone gave no answer within {timeout_s:g} s")
        answer = self._process.stdout.readline()
        if not answer:
            ended = exit_codes.describe(self._process.wait())
            raise BareModelError(f"the model alone {ended}")
        said: dict[str, Any] = json.loads(answer)
        if "error" in said:
            raise BareModelError(f"the model alone cannot be loaded: {said['error']}")
        return said


@contextmanager
def bare_model(
    config: WorkerConfig, check: Callable[[], None] = lambda: None, *, quiet: bool = False
) -> Iterator[BareModel]:
    """Start the model of a worker, without waiting for it; it ends with the context.

    Args:
        config: what the worker would be told.
        check: see `BareModel`.
        quiet: leave out what it has to say on standard error.

    """
    process = subprocess.Popen(  # noqa: S603  # our own module
        module_command(f"{__package__}.bare"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        start_new_session=True,  # Ctrl-C is for us, and we end it
    )
    try:
        model = BareModel(process, check)
        model.load(config)
        yield model
    finally:
        process.kill()
        process.communicate()
