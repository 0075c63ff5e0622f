"""One process of clients: `load` starts it, and tells it on standard input what to do.

It makes the sentences, says `ready`, waits for `go` as the processes beside it do, and
lets its clients make their calls, all on one event loop. Then it says how much of a core
that took, and writes what each call took. It ends at once when its parent is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass

import zmq.asyncio

from bert_serving.server import exit_codes

from .experiments import WARM_UP_REPEATS
from .measurement import Call
from .targets import NATIVE, Target
from .wires import CallFailed, Wire
from .wiring import wire_to
from .words import sentences

READY, GO = "ready", "go"

ERROR_PAUSE_S = 0.05
"""A server that refuses everything at once must not be flooded for it."""

MOST_AT_ONCE = 10_000
"""Calls of an open loop without an answer: where so many wait, it ends, and that is known."""


@dataclass(frozen=True, kw_only=True)
class ClientsConfig:
    """What one process of clients must know.

    Attributes:
        target: the server.
        clients: the numbers of its clients, in groups of those that share a connection where
            the protocol has room for several.
        client_batch_size: sentences a call.
        num_repeat: calls of each client, where `seconds` is None.
        seconds: how long they go on.
        rate: calls a second of an open loop, which waits for no answer; None for clients
            that make one call after the other.
        delay_s: how long after the others they begin.
        layers: what they ask for; None is the server's own view.
        words: to make sentences of.
        sentence_words: words of each sentence; None mixes lengths.
        longest: most words where lengths are mixed.

    """

    target: Target
    clients: Sequence[Sequence[int]]
    client_batch_size: int
    num_repeat: int
    seconds: float | None
    rate: float | None
    delay_s: float
    layers: Sequence[int] | None
    words: Sequence[str]
    sentence_words: int | None
    longest: int

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClientsConfig:
        """Return what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "target": Target(**values["target"])})


def main() -> int:
    """Live the life of a process of clients; returns the exit status."""
    config = ClientsConfig.from_json(sys.stdin.readline())
    batches = {client: _batch(config, client) for group in config.clients for client in group}
    _say(READY)
    if sys.stdin.readline().strip() != GO:
        return exit_codes.ORPHANED
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    started, cpu = time.monotonic(), time.process_time()
    calls = asyncio.run(_calls(config, batches))
    cores = (time.process_time() - cpu) / (time.monotonic() - started - config.delay_s)
    _say(f"{cores}")
    _say(json.dumps([astuple(call) for call in calls]))
    return exit_codes.OK


def _batch(config: ClientsConfig, client: int) -> list[str]:
    return sentences(
        config.words,
        config.client_batch_size,
        length=config.sentence_words,
        longest=config.longest,
        seed=client,
    )


async def _calls(config: ClientsConfig, batches: dict[int, list[str]]) -> list[Call]:
    """Connect, make all calls, and close."""
    await asyncio.sleep(config.delay_s)
    with zmq.asyncio.Context() as context:
        wires = _wires(config, context)
        clients = [_Client(client, wires[client], batch) for client, batch in batches.items()]
        try:
            if config.rate is not None and config.seconds is not None:
                await _open_loop(clients, config.rate, config.seconds)
            else:
                end = None if config.seconds is None else time.monotonic() + config.seconds
                await asyncio.gather(*(_closed_loop(c, config.num_repeat, end) for c in clients))
        finally:
            for wire in {id(wire): wire for wire in wires.values()}.values():
                await wire.close()
    return [call for client in clients for call in client.calls]


class _Client:
    """One client, its number, and what its calls took."""

    def __init__(self, number: int, wire: Wire, batch: Sequence[str]) -> None:
        self.number = number
        self.calls: list[Call] = []
        self._wire, self._batch = wire, batch

    async def call(self, repeat: int, start_s: float) -> bool:
        """Make a call that begins at an instant; returns whether it was answered."""
        try:
            answer = await self._wire.encode(self._batch)
        except CallFailed as error:
            call = Call(
                *(self.number, repeat, start_s, time.monotonic()),
                error=error.kind,
                message=str(error),
            )
        else:
            call = Call(
                *(self.number, repeat, start_s, time.monotonic()),
                rows=answer.rows,
                tokens=answer.tokens,
                token_pairs=answer.token_pairs,
                truncated=answer.truncated,
            )
        self.calls.append(call)
        return call.error is None


async def _closed_loop(client: _Client, num_repeat: int, end: float | None) -> None:
    """Make one call after the other: so many, or until the end, and never only warm-up."""
    for repeat in itertools.count():
        goes_on = repeat < num_repeat if end is None else time.monotonic() < end
        if repeat > WARM_UP_REPEATS and not goes_on:
            return
        if not await client.call(repeat, time.monotonic()):
            await asyncio.sleep(ERROR_PAUSE_S)


async def _open_loop(clients: Sequence[_Client], rate: float, seconds: float) -> None:
    """Make calls at random instants, whether or not earlier ones are answered.

    So a server that stops for a moment costs all who come in that moment. In a closed loop
    it costs the one who waits, and the calls that the others would have made are not made.
    """
    chance = random.Random(clients[0].number)  # noqa: S311  # no secret
    for repeat in range(WARM_UP_REPEATS):
        await asyncio.gather(*(client.call(repeat, time.monotonic()) for client in clients))
    waiting: set[asyncio.Task[bool]] = set()
    due = time.monotonic()
    end = due + seconds
    for number in itertools.count():
        due += chance.expovariate(rate)
        if due >= end or len(waiting) >= MOST_AT_ONCE:
            break
        await asyncio.sleep(due - time.monotonic())
        repeat, which = divmod(number, len(clients))
        # from now, not from when it was due: the loop wakes up to a millisecond late
        call = clients[which].call(WARM_UP_REPEATS + repeat, time.monotonic())
        task = asyncio.create_task(call)
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)


def _wires(config: ClientsConfig, context: zmq.asyncio.Context) -> dict[int, Wire]:
    """Return what each client speaks through."""
    wires: dict[int, Wire] = {}
    for group in config.clients:
        sharing = [group] if config.target.wire == NATIVE else [[client] for client in group]
        for clients in sharing:
            identity = f"benchmark client {clients[0]}"
            wire = wire_to(config.target, context, identity=identity, layers=config.layers)
            wires.update(dict.fromkeys(clients, wire))
    return wires


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
