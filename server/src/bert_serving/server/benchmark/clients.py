"""One process of clients: `load` starts it, and tells it on standard input what to do.

It makes the sentences, says `ready`, waits for `go` as the processes beside it do, and
lets each client make its calls from a thread of its own. Then it writes what each call
took. It ends at once when its parent is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bert_serving.client import BertClient
from bert_serving.client.errors import ServingError
from bert_serving.server import exit_codes

from .measurement import Call
from .words import sentences

READY, GO = "ready", "go"

# an answer takes long where many clients share a slow model, but not for ever
ANSWER_TIMEOUT_MS = 600_000
CONNECT_TIMEOUT_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class ClientsConfig:
    """What one process of clients must know.

    Attributes:
        host, port: the server's.
        clients: the numbers of its clients.
        client_batch_size: sentences a call.
        num_repeat: calls of each client.
        layers: what they ask for; None is the server's own view.
        words: to make sentences of.
        sentence_words: words of each sentence; None mixes lengths.
        longest: most words where lengths are mixed.

    """

    host: str
    port: int
    clients: Sequence[int]
    client_batch_size: int
    num_repeat: int
    layers: Sequence[int] | None
    words: Sequence[str]
    sentence_words: int | None
    longest: int


def main() -> int:
    """Live the life of a process of clients; returns the exit status."""
    config = ClientsConfig(**json.loads(sys.stdin.readline()))
    batches = {client: _batch(config, client) for client in config.clients}
    _say(READY)
    if sys.stdin.readline().strip() != GO:
        return exit_codes.ORPHANED
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    with ThreadPoolExecutor(len(batches)) as pool:
        calls = pool.map(lambda client: _calls(config, client, batches[client]), batches)
        _say(json.dumps([asdict(call) for own in calls for call in own]))
    return exit_codes.OK


def _batch(config: ClientsConfig, client: int) -> list[str]:
    return sentences(
        config.words,
        config.client_batch_size,
        length=config.sentence_words,
        longest=config.longest,
        seed=client,
    )


def _calls(config: ClientsConfig, client: int, batch: list[str]) -> list[Call]:
    """Make one client's calls, one after the other."""
    views = {"embedding": {"layers": config.layers}} if config.layers is not None else None
    with BertClient(
        ip=config.host,
        port=config.port,
        identity=f"benchmark client {client}",
        ignore_all_checks=True,  # it connects in its first call, so that failing is counted
        timeout=ANSWER_TIMEOUT_MS,
        connect_timeout=CONNECT_TIMEOUT_MS,
    ) as bc:
        return [_call(bc, client, repeat, batch, views) for repeat in range(config.num_repeat)]


def _call(bc: BertClient, client: int, repeat: int, batch: list[str], views: Any) -> Call:
    start_s = time.monotonic()
    try:
        encoding = bc.encode_detailed(batch, views)
    except ServingError as error:
        name = type(error).__name__
        return Call(client, repeat, start_s, time.monotonic(), error=name, message=str(error))
    end_s = time.monotonic()
    tokens = encoding.n_tokens.astype(np.int64)
    return Call(
        client,
        repeat,
        start_s,
        end_s,
        rows=len(tokens),
        tokens=int(tokens.sum()),
        token_pairs=int((tokens**2).sum()),
        truncated=int(np.count_nonzero(encoding.truncated)),
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    # not through Python's buffer: this thread would still hold its lock when the process ends
    while os.read(0, 64):
        pass
    os._exit(exit_codes.ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
