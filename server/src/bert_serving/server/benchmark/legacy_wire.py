"""The wire of bert-as-service 1.10: requests are pushed, results come by subscription."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence

import numpy as np
import zmq
import zmq.asyncio

from bert_serving.server.gateway.legacy.requests import SHOW_CONFIG

from .wires import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Answer, CallFailed

ASK_AGAIN_MS = 500
"""A subscription needs time to get to the server; what is answered before it is there is lost."""


class LegacyWire:
    """One client: a socket to push to, and one that has subscribed to its identity."""

    def __init__(self, context: zmq.asyncio.Context, host: str, port: int, port_out: int) -> None:
        self._identity = str(uuid.uuid4()).encode()
        self._requests = 0
        self._is_subscribed = False
        self._push: zmq.asyncio.Socket = context.socket(zmq.PUSH)
        self._results: zmq.asyncio.Socket = context.socket(zmq.SUB)
        self._push.linger = self._results.linger = 0
        self._results.subscribe(self._identity)
        ip = f"[{host}]" if ":" in host else host
        self._push.connect(f"tcp://{ip}:{port}")
        self._results.connect(f"tcp://{ip}:{port_out}")

    async def encode(self, texts: Sequence[str]) -> Answer:
        """Have texts encoded by the server's own layer and pooling."""
        if not self._is_subscribed:
            await self._wait_subscribed()
        request = await self._send(json.dumps(texts).encode(), len(texts))
        header, values = await self._receive(request, ANSWER_TIMEOUT_S * 1000)
        said = json.loads(header)
        rows = said["shape"][0]
        try:
            size = np.dtype(said["dtype"]).itemsize * int(np.prod(said["shape"]))
        except TypeError:  # it is how errors are told to old clients
            raise CallFailed("WrongAnswer", str(said["dtype"])) from None
        if rows != len(texts) or size != len(values):
            raise CallFailed("WrongAnswer", f"{said} for {len(texts)} texts")
        return Answer(rows)

    async def close(self) -> None:
        """Close both sockets."""
        self._push.close()
        self._results.close()

    async def _wait_subscribed(self) -> None:
        for _ in range(int(CONNECT_TIMEOUT_S * 1000 / ASK_AGAIN_MS)):
            request = await self._send(SHOW_CONFIG, 1)
            try:
                await self._receive(request, ASK_AGAIN_MS)
            except CallFailed:
                continue
            self._is_subscribed = True
            return
        raise CallFailed("Unreachable", f"no answer within {CONNECT_TIMEOUT_S:g} s")

    async def _send(self, body: bytes, rows: int) -> bytes:
        self._requests += 1
        request = str(self._requests).encode()
        frames = [self._identity, body, request, str(rows).encode()]
        try:
            await asyncio.wait_for(self._push.send_multipart(frames), ANSWER_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise CallFailed("Unreachable", "it takes nothing in") from None
        return request

    async def _receive(self, request: bytes, timeout_ms: float) -> list[bytes]:
        """Return the frames between the identity and the id of the request answered."""
        while await self._results.poll(timeout_ms):
            frames: list[bytes] = await self._results.recv_multipart()
            if frames[-1] == request:  # else it answers an earlier SHOW_CONFIG
                return frames[1:-1]
        raise CallFailed("Timeout", f"no answer within {timeout_ms / 1000:g} s")
