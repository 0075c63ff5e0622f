"""Clients of every kind, each a thread that asks until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import zmq
from account import WrongAnswer, check
from scene import TIMEOUT_S, Scene, embeddings, old_wire, texts_of

from bert_serving.client import AsyncBertClient, BertClient, ConcurrentBertClient
from bert_serving.client.messages import Encode, ErrorAnswer, Result
from bert_serving.client.protocol import parse_answer
from bert_serving.client.rows import pack_rows
from bert_serving.client.view import View

PAUSE_S = 0.05
CALLS_A_CLIENT = 30
FLOOD = 300
LEGACY_PATIENCE_S = 5.0


def single(scene: Scene, rng: Random) -> None:
    """Ask for few rows at a time, with a client that is now and then a new one."""
    while not scene.stop.is_set():
        with scene.client() as client:
            for _ in range(CALLS_A_CLIENT):
                ask(scene, client, "single", texts_of(rng, 4))
                if scene.stop.wait(rng.random() * PAUSE_S):
                    return


def ask(scene: Scene, client: BertClient, kind: str, texts: list[str]) -> None:
    """Make one call and look at what it gives."""
    with scene.account.asking(kind, TIMEOUT_S):
        check(client.encode(texts), embeddings(texts))


def bulk(scene: Scene, rng: Random) -> None:
    """Ask for thousands of rows in a call."""
    with scene.client() as client:
        while not scene.stop.is_set():
            texts = texts_of(rng, 3_000)
            requests = 1 + len(texts) // 16  # the time of a call starts anew with each answer
            with scene.account.asking("bulk", TIMEOUT_S * requests):
                check(client.encode(texts), embeddings(texts))
            scene.stop.wait(rng.random() * PAUSE_S)


def concurrent(scene: Scene, rng: Random) -> None:
    """Ask with bert-as-service's client for threads, and fetch later what was asked."""
    server = scene.server
    options: dict[str, Any] = {"timeout": TIMEOUT_S * 1000, "connect_timeout": TIMEOUT_S * 1000}
    with ConcurrentBertClient(max_concurrency=4, port=server.port, **options) as client:
        while not scene.stop.is_set():
            ask(scene, client, "concurrent", texts_of(rng, 40))
            scene.stop.wait(rng.random() * PAUSE_S)


def asynchronous(scene: Scene, rng: Random) -> None:
    """Ask from coroutines, many at a time, some of which are cancelled."""
    asyncio.run(_ask_in_coroutines(scene, rng))


async def _ask_in_coroutines(scene: Scene, rng: Random) -> None:
    options: dict[str, Any] = {"timeout": TIMEOUT_S * 1000, "connect_timeout": TIMEOUT_S * 1000}
    async with AsyncBertClient(port=scene.server.port, **options) as client:

        async def one() -> None:
            texts = texts_of(rng, 8)
            with scene.account.asking("asyncio", TIMEOUT_S):
                check(await client.encode(texts), embeddings(texts))

        async def cancelled() -> None:
            call = asyncio.ensure_future(client.encode(texts_of(rng, 8)))
            await asyncio.sleep(rng.random() * 0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

        while not scene.stop.is_set():
            await asyncio.gather(*(one() for _ in range(8)), cancelled())
            await asyncio.sleep(rng.random() * PAUSE_S)


def legacy(scene: Scene, rng: Random) -> None:
    """Speak bert-as-service's protocol; what a killed gateway had is asked for again."""
    identity = b"chaos-%d" % rng.randrange(1 << 40)
    with old_wire(scene.legacy) as wire:
        wire.subscribe(identity)
        number = 0
        while not scene.stop.is_set():
            number += 1
            ask_legacy(scene, wire, identity, b"%d" % number, texts_of(rng, 8))
            scene.stop.wait(rng.random() * PAUSE_S)


def ask_legacy(scene: Scene, wire: Any, identity: bytes, number: bytes, texts: list[str]) -> None:
    account = scene.account
    asked, started = account.ask("legacy", TIMEOUT_S), time.monotonic()
    body = json.dumps(texts).encode()
    sent = 0.0
    while time.monotonic() < started + TIMEOUT_S:
        now = time.monotonic()
        died = scene.died_since("gateway", sent - 1) or scene.died_since("broker", sent - 1)
        if not sent or (now - sent > LEGACY_PATIENCE_S and died):
            wire.send(identity, body, number, b"%d" % len(texts))
            sent = now
        if not wire.subscriber.poll(200):
            continue
        frames = wire.subscriber.recv_multipart()
        if frames[-1] != number:  # the answer to what was asked for twice
            continue
        header = json.loads(frames[1])
        if header["dtype"] != "float32":
            account.refuse(asked, f"legacy, {header['dtype'][14:40]}")
            return
        try:
            vectors = np.frombuffer(frames[2], "float32").reshape(header["shape"])
            check(vectors, embeddings([text.strip() for text in texts]))
        except WrongAnswer as error:
            account.answer_wrongly(asked, str(error))
        else:
            account.answer_rightly(asked)
        return
    account.lose(asked, f"legacy: no answer to request {number.decode()}")


def flooding(scene: Scene, rng: Random) -> None:
    """Send hundreds of requests at once over a bare socket; each has exactly one answer."""
    while not scene.stop.is_set():
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(f"tcp://127.0.0.1:{scene.server.port}")
            _flood(scene, socket, rng)
        scene.stop.wait(1.0 + rng.random())


def _flood(scene: Scene, socket: zmq.Socket[Any], rng: Random) -> None:
    texts = {number: f"flood {rng.randrange(1 << 40)} {number}" for number in range(FLOOD)}
    asked = {number: scene.account.ask("flood", TIMEOUT_S) for number in texts}
    _send(socket, texts)
    sent = started = time.monotonic()
    times_sent = 1
    while asked and time.monotonic() < started + TIMEOUT_S:
        if not socket.poll(500):
            if scene.died_since("broker", sent - 1):  # what it had is gone with it
                _send(socket, {times_sent * FLOOD + number: texts[number] for number in asked})
                sent, times_sent = time.monotonic(), times_sent + 1
            continue
        answer = parse_answer(socket.recv_multipart())
        number = getattr(answer, "id", None)
        if number is not None:
            number %= FLOOD  # sent again it has another id: the next broker may have both
        if number not in asked:
            if times_sent == 1:
                unknown = scene.account.ask("flood", TIMEOUT_S)
                scene.account.answer_wrongly(unknown, f"answered twice: {answer!r}")
            continue
        _look_at(scene, asked.pop(number), texts[number], answer)
    for number, one in asked.items():
        scene.account.lose(one, f"flood: no answer to request {number}")


def _send(socket: zmq.Socket[Any], texts: dict[int, str]) -> None:
    for number, text in texts.items():
        message = Encode(number, 1, int(TIMEOUT_S * 1000), {"e": View()}, pack_rows([text]))
        socket.send_multipart(message.to_frames())


def _look_at(scene: Scene, asked: Any, text: str, answer: Any) -> None:
    if isinstance(answer, ErrorAnswer):
        scene.account.refuse(asked, answer.code)
    elif isinstance(answer, Result) and np.array_equal(
        answer.views["e"].values, embeddings([text])
    ):
        scene.account.answer_rightly(asked)
    else:
        scene.account.answer_wrongly(asked, repr(answer)[:200])


def vanishing(scene: Scene, rng: Random) -> None:
    """Send requests and be gone, or stay and never read an answer: nobody waits for them."""
    while not scene.stop.is_set():
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.rcvhwm = 1
            socket.connect(f"tcp://127.0.0.1:{scene.server.port}")
            texts = {n: f"nobody reads {rng.randrange(1 << 40)}" for n in range(50)}
            _send(socket, texts)
            scene.stop.wait(rng.choice([0.05, 2.0]))


KINDS: dict[str, tuple[int, Callable[[Scene, Random], None]]] = {
    "single": (3, single),
    "bulk": (1, bulk),
    "concurrent": (2, concurrent),
    "asyncio": (1, asynchronous),
    "legacy": (2, legacy),
    "flooding": (1, flooding),
    "vanishing": (2, vanishing),
}
"""How many of each kind there are, and what they do."""


def live(scene: Scene, name: str, ask_on: Callable[[Scene, Random], None], seed: str) -> None:
    """Be a client until told to stop: one that is refused when it comes tries again."""
    rng = Random(seed)
    while not scene.stop.is_set():
        try:
            ask_on(scene, rng)
        except Exception as error:  # it could not even begin: see what it was
            with scene.account.asking(f"{name}, to connect", TIMEOUT_S):
                raise error from None
            scene.stop.wait(0.5)
