"""How clients speak to a server: one small interface, and ours behind it.

A wire carries one call at a time for each of its users. What goes wrong with a call is a
`CallFailed`, so that a load counts it and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bert_serving.client import AsyncBertClient
from bert_serving.client.errors import ServingError
from bert_serving.client.options import EMBEDDING

# an answer takes long where many clients share a slow model, but not for ever
ANSWER_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """What a call brought back.

    Attributes:
        rows: embeddings.
        tokens: of all rows, special ones included; 0 if the server does not say.
        token_pairs: sum over rows of tokens squared; 0 if the server does not say.
        truncated: rows that were cut.

    """

    rows: int
    tokens: int = 0
    token_pairs: int = 0
    truncated: int = 0


class CallFailed(Exception):
    """A call ended without an answer.

    Attributes:
        kind: the type of the error.

    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Wire(Protocol):
    """A connection to a server, made in the first call, so that failing is counted."""

    async def encode(self, texts: Sequence[str]) -> Answer:
        """Have texts encoded; CallFailed if they are not."""

    async def close(self) -> None:
        """Close the connection."""


class NativeWire:
    """Our own client; its users share it, as the tasks of one application do."""

    def __init__(
        self, host: str, port: int, *, identity: str, layers: Sequence[int] | None
    ) -> None:
        self._client = AsyncBertClient(
            ip=host,
            port=port,
            identity=identity,
            timeout=ANSWER_TIMEOUT_S * 1000,
            connect_timeout=CONNECT_TIMEOUT_S * 1000,
        )
        self._views = {EMBEDDING: {"layers": layers}} if layers is not None else None

    async def encode(self, texts: Sequence[str]) -> Answer:
        """Have texts encoded by the server's own view, or of the layers asked for."""
        try:
            encoding = await self._client.encode_detailed(texts, self._views)
        except ServingError as error:
            raise CallFailed(type(error).__name__, str(error)) from None
        tokens = encoding.n_tokens.astype(np.int64)
        return Answer(
            rows=len(tokens),
            tokens=int(tokens.sum()),
            token_pairs=int((tokens**2).sum()),
            truncated=int(np.count_nonzero(encoding.truncated)),
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()
