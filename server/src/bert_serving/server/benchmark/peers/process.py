"""One peer's process: started, asked in lines of JSON, and ended with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_serving.server import exit_codes
from bert_serving.server.benchmark.server_process import end_session

from .catalogue import PeerChoice
from .programs.lines import Options

PROGRAMS = Path(__file__).with_name("programs")

READY_S = 300.0
"""Exporting and compiling a large model takes minutes."""

ANSWER_S = 600.0
END_S = 10.0
TURN_S = 0.1


class PeerFailed(Exception):
    """A peer did not start, did not answer, or said what went wrong; the message says it."""


@dataclass(frozen=True)
class PeerFacts:
    """What a peer said of itself when it was ready; see `programs.lines.Peer`."""

    name: str
    version: str
    dtype: str
    layers: int
    threads: int
    settings: str
    url: str | None
    max_tokens: int | None


class PeerProcess:
    """A peer with options, until it is stopped.

    Args:
        choice: which peer, and the interpreter that has it.
        options: what it is told.
        log: where its standard error is appended.
        check: called often while it is waited for; what it raises ends the wait.

    """

    def __init__(
        self, choice: PeerChoice, options: Options, log: Path, *, check: Callable[[], None]
    ) -> None:
        self._choice = choice
        self._options = options
        self._log = log
        self._check = check
        self._process: subprocess.Popen[bytes] | None = None
        self._read = bytearray()

    def start(self) -> PeerFacts:
        """Start it, and wait until it is ready; returns what it is.

        Raises:
            PeerFailed: it was not ready in time, or said why it cannot be.

        """
        program, options = self._choice.peer.program, json.dumps(asdict(self._options))
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"\n# {self._choice.python} {PROGRAMS} {program} '{options}'\n")
            log.flush()
            self._process = subprocess.Popen(  # noqa: S603  # our program, the user's interpreter
                [self._choice.python, str(PROGRAMS), program, options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        ready = self._answer(READY_S)
        del ready["ready"]
        return PeerFacts(**ready)

    def encode(self, texts: Sequence[str]) -> float:
        """Have texts encoded; returns the seconds it took. Raises PeerFailed."""
        answer = self._ask({"encode": list(texts)})
        if answer["rows"] != len(texts):
            raise PeerFailed(f"it encoded {answer['rows']} of {len(texts)} texts")
        return float(answer["seconds"])

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of a few texts. Raises PeerFailed."""
        vectors: list[list[float]] = self._ask({"vectors": list(texts)})["vectors"]
        return vectors

    def tune(self, texts: Sequence[str], limit_s: float) -> str:
        """Have it find its best settings for such texts; returns them in words."""
        return str(self._ask({"tune": list(texts), "limit_s": limit_s})["settings"])

    def stop(self) -> None:
        """End it and all that it started; a second call does nothing."""
        process = self._process
        if process is None:
            return
        self._process = None
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            end_session(process, END_S)
        finally:
            process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended; reading from it says how
        return self._answer(ANSWER_S)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        """Return the next line that it says, read as JSON."""
        assert self._process is not None and self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                self._check()
                if time.monotonic() >= deadline:
                    raise PeerFailed(f"it said nothing for {limit_s:.0f} s: see {self._log}")
                if selector.select(TURN_S):
                    self._read += self._chunk()
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read = bytearray(rest)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer

    def _chunk(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        if chunk := os.read(self._process.stdout.fileno(), 1 << 16):
            return chunk
        status = exit_codes.describe(self._process.wait(END_S))
        raise PeerFailed(f"its process {status}: see {self._log}")
