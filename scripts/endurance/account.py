"""What became of every request: the figures that a run is judged by."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bert_serving.client.errors import RequestTimeout, ServingError

MARGIN_S = 3.0
"""What a call may take beyond its deadline, on a machine that is busy with faults."""


@dataclass(eq=False)
class Asked:
    """A request that somebody waits for."""

    kind: str
    deadline: float


@dataclass
class Account:
    """The requests of all clients of a run.

    Attributes:
        sent: by kind of client.
        right: answered with what they should be, by kind.
        errors: answered with a typed error, by its class.
        wrong: answered with something else; each with what it was.
        lost: ended by their own client, as no answer ever came.
        unanswered: not ended when their deadline had passed.
        silence_s: the longest time in which nobody got an answer.

    """

    sent: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    silence_s: float = 0.0
    _open: set[Asked] = field(default_factory=set)
    _last_answer: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def asking(self, kind: str, timeout_s: float) -> Iterator[None]:
        """Count what a block asks for: it ends in time, and rightly or with a typed error."""
        asked = self.ask(kind, timeout_s)
        try:
            yield
        except RequestTimeout as error:
            self.lose(asked, f"{kind}: {error}")
        except ServingError as error:
            self.refuse(asked, type(error).__name__)
        except WrongAnswer as error:
            self.answer_wrongly(asked, str(error))
        except Exception as error:  # noqa: BLE001  # whatever else a caller gets is wrong
            self.answer_wrongly(asked, f"{type(error).__name__}: {error}")
        else:
            self.answer_rightly(asked)

    def ask(self, kind: str, timeout_s: float) -> Asked:
        """Note a request that is to be ended within a time."""
        asked = Asked(kind, time.monotonic() + timeout_s + MARGIN_S)
        with self._lock:
            self.sent[kind] += 1
            self._open.add(asked)
        return asked

    def answer_rightly(self, asked: Asked) -> None:
        """Note a right answer."""
        with self._lock:
            self._end(asked)
            self._hear()
            self.right[asked.kind] += 1

    def refuse(self, asked: Asked, error: str) -> None:
        """Note a typed error."""
        with self._lock:
            self._end(asked)
            self._hear()
            self.errors[error] += 1

    def answer_wrongly(self, asked: Asked, what: str) -> None:
        """Note an answer that is not the one it should be."""
        with self._lock:
            self._end(asked)
            self.wrong.append(f"{asked.kind}: {what}")

    def lose(self, asked: Asked, what: str) -> None:
        """Note a request whose client has given up, as there was no answer."""
        with self._lock:
            self._end(asked)
            self.lost.append(what)

    def close(self) -> None:
        """Note that the run is over: what is open now is so for good."""
        with self._lock:
            self._hear()
            self.unanswered += [f"{asked.kind}: still open" for asked in self._open]
            self._open.clear()

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong, lost or unanswered, and something was answered."""
        return bool(self.right) and not (self.wrong or self.lost or self.unanswered)

    def lines(self) -> Iterator[str]:
        """Yield the lines of a report."""
        sent, right, errors = (c.total() for c in (self.sent, self.right, self.errors))
        for kind in sorted(self.sent):
            yield f"{kind:24}{self.sent[kind]:>10,} sent{self.right[kind]:>10,} right"
        yield f"requests sent           {sent:>10,}"
        yield f"answered right          {right:>10,}"
        yield f"answered with an error  {errors:>10,}  ({errors / max(sent, 1):.2%})"
        for name, number in self.errors.most_common():
            yield f"  {name:22}{number:>10,}"
        for name, found in (
            ("wrong", self.wrong), ("lost", self.lost), ("unanswered in time", self.unanswered)
        ):  # fmt: skip
            yield f"{name:24}{len(found):>10,}"
            yield from (f"  {what[:300]}" for what in found[:5])
        yield f"longest silence         {self.silence_s:>10.1f} s"

    def _end(self, asked: Asked) -> None:
        self._open.discard(asked)
        if time.monotonic() > asked.deadline:
            self.unanswered.append(f"{asked.kind}: ended, but too late")

    def _hear(self) -> None:
        now = time.monotonic()
        self.silence_s = max(self.silence_s, now - self._last_answer)
        self._last_answer = now


class WrongAnswer(Exception):
    """An answer that is not what it should be."""


def check(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> None:
    """Raise unless an answer is what it should be, bit for bit."""
    if not np.array_equal(got, wanted):
        raise WrongAnswer(f"shape {got.shape}, wanted {wanted.shape}, or other values")
