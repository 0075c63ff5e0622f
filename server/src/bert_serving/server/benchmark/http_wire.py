"""OpenAI-style embeddings over HTTP/1.1, as infinity and others serve them.

Written by hand on asyncio's streams: a load of hundreds of connections must not cost the
cores that the server under test needs, and no more than what such servers answer is read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .wires import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, Answer, CallFailed

MAX_HEAD_BYTES = 1 << 16
MAX_SAID = 200
"""Characters of an error's body that are repeated."""


class HttpWire:
    """One connection that is kept, to `PATH/embeddings`; made again where it broke."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self._host, self._port, self._path = host, port, path
        self._model: str | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def encode(self, texts: Sequence[str]) -> Answer:
        """Have texts encoded by the server's first model."""
        try:
            return await asyncio.wait_for(self._encode(texts), ANSWER_TIMEOUT_S)
        except CallFailed:
            raise
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.LimitOverrunError) as error:
            raise await self._broken(error) from None
        except (ValueError, LookupError, TypeError) as error:
            raise await self._broken(error, "the answer cannot be read: ") from None

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _encode(self, texts: Sequence[str]) -> Answer:
        if self._model is None:
            self._model = await self._first_model()
        body = {"model": self._model, "input": list(texts)}
        answer = await self._ask("POST", "/embeddings", json.dumps(body).encode())
        rows = len(answer["data"])
        if rows != len(texts):
            raise CallFailed("WrongAnswer", f"{rows} embeddings for {len(texts)} texts")
        return Answer(rows, tokens=int((answer.get("usage") or {}).get("prompt_tokens", 0)))

    async def _first_model(self) -> str:
        """Return the name of a model; servers of one model seldom care for it."""
        try:
            return str((await self._ask("GET", "/models", b""))["data"][0]["id"])
        except (CallFailed, LookupError, TypeError):
            return "default"

    async def _ask(self, method: str, path: str, body: bytes) -> Any:
        reader, writer = await self._connected()
        head = (
            f"{method} {self._path}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        status, fields = _read_head(await reader.readuntil(b"\r\n\r\n"))
        said = await _read_body(reader, fields)
        if fields.get("connection", "").lower() == "close":
            await self.close()
        if status != 200:
            raise CallFailed(f"HTTP{status}", said[:MAX_SAID].decode("utf-8", "replace"))
        return json.loads(said)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            connecting = asyncio.open_connection(self._host, self._port, limit=MAX_HEAD_BYTES)
            self._streams = await asyncio.wait_for(connecting, CONNECT_TIMEOUT_S)
        return self._streams

    async def _broken(self, error: Exception, prefix: str = "") -> CallFailed:
        """Close: what else may come on this connection belongs to no call."""
        await self.close()
        return CallFailed(type(error).__name__, f"{prefix}{error}")


def _read_head(head: bytes) -> tuple[int, Mapping[str, str]]:
    """Return an answer's status, and its fields by their names in lower case."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines if line)
    }
    return int(first.split()[1]), fields


async def _read_body(reader: asyncio.StreamReader, fields: Mapping[str, str]) -> bytes:
    if fields.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(fields["content-length"]))
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)  # its line's end
    await reader.readuntil(b"\r\n")
    return bytes(body)
