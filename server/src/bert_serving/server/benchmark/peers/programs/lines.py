"""The conversation of a peer with the benchmark: a line of JSON each, on its standard streams.

The first line says that the peer is ready, and what it is; or what is in its way. Then come
requests, and each gets its answer:

| request | answer |
| --- | --- |
| `{"encode": texts}` | `{"seconds": …, "rows": …}`, the time of encoding alone |
| `{"vectors": texts}` | `{"vectors": …}`, a list of numbers each |
| `{"tune": texts, "limit_s": …}` | `{"settings": …}`: those it found best for such texts |

What fails is answered with `{"error": …}`. In between it waits in a read, and burns nothing.
It ends when its standard input does, whatever it is at. Only the standard library is used
here: this runs wherever a peer does.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Options:
    """What a peer is told.

    Attributes:
        model_dir: a Hugging Face directory.
        dtype: what to compute in.
        threads: that it may compute with.
        address: of a server that is there already, for a peer that is one.

    """

    model_dir: str
    dtype: str
    threads: int
    address: str | None = None


@dataclass(frozen=True)
class Peer:
    """A peer that is ready.

    Attributes:
        name, version: what it is.
        dtype: what it computes in.
        layers: how many it computes.
        threads: that it computes with.
        encode: returns the vectors of texts, mean over the tokens of its last layer.
        tune: finds its best settings for such texts, in so many seconds at most, and returns
            them in words; None where there is nothing to choose.
        settings: in words, where there is nothing to choose.
        url: of its server, if it is one that speaks HTTP.
        max_tokens: rows are cut to so many; None if only the model limits them.

    """

    name: str
    version: str
    dtype: str
    layers: int
    threads: int
    encode: Callable[[list[str]], Any]
    tune: Callable[[list[str], float], str] | None = None
    settings: str = ""
    url: str | None = None
    max_tokens: int | None = None

    def ready(self) -> dict[str, Any]:
        """Return the line that says so."""
        told = ("name", "version", "dtype", "layers", "threads", "settings", "url", "max_tokens")
        return {"ready": True, **{name: getattr(self, name) for name in told}}


@dataclass
class Life:
    """What a program leaves behind when it ends: what it started must end with it."""

    at_end: list[Callable[[], None]] = field(default_factory=list)

    def end(self, status: int) -> None:
        """End this process now, from any thread."""
        for action in self.at_end:
            action()
        os._exit(status)


def converse(program: Callable[[], ModuleType], options: Options) -> None:
    """Live a peer's life; does not return.

    Args:
        program: imports the module whose `open_peer` opens the peer.
        options: what it is told.

    """
    say, life = _own_stdout(), Life()
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, life), daemon=True).start()
    try:
        peer: Peer = program().open_peer(options, life)
    except Exception as error:  # noqa: BLE001  # of any library; the owner has to be told
        say(_described(error))
        life.end(1)
    say(peer.ready())
    while True:
        request = requests.get()
        try:
            say(_answer(peer, json.loads(request)))
        except Exception as error:  # noqa: BLE001  # likewise
            say(_described(error))


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    if "encode" in request:
        texts = request["encode"]
        started = time.perf_counter()
        vectors = peer.encode(texts)
        return {"seconds": time.perf_counter() - started, "rows": len(vectors)}
    if "vectors" in request:
        vectors = peer.encode(request["vectors"])
        return {"vectors": [[float(number) for number in vector] for vector in vectors]}
    if "tune" in request:
        tuned = peer.tune(request["tune"], request["limit_s"]) if peer.tune else peer.settings
        return {"settings": tuned}
    return {"error": f"got {sorted(request)}: expected encode, vectors or tune"}


def _own_stdout() -> Callable[[dict[str, Any]], None]:
    """Return what writes an answer; what libraries print goes to standard error from now on."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        stream.write(json.dumps(answer) + "\n")
        stream.flush()

    return say


def _read(requests: queue.SimpleQueue[bytes], life: Life) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    life.end(0)


def _described(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}"[:2000]}
