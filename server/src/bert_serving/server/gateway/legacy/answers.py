"""Wording answers for clients of bert-as-service: pure.

An old client knows two kinds of answer, an array and a status. An error must come as one
of these: an array whose data type is the message, at which NumPy raises a `TypeError`
that quotes it; and a status whose `server_version` is the message, which the client quotes
when it compares versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_serving.client.assembly import Array, Encoding
from bert_serving.client.frames import array_buffer
from bert_serving.client.messages import Welcome
from bert_serving.client.options import EMBEDDING
from bert_serving.client.rows import Row

from .requests import LegacyRequest

MAX_ANSWER_BYTES = 2 << 30
MAX_ERROR_CHARS = 1000
SPECIAL_TOKENS = 3  # of a pair
FLOAT_BYTES = 4


@dataclass(slots=True, eq=False)
class LegacyAnswer:
    """One message to whoever has subscribed to an identity.

    Attributes:
        identity: the first frame.
        rest: the frames that follow.
        since: when it was there to be sent.

    """

    identity: bytes
    rest: list[Any]
    since: float = 0.0
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(map(len, self.rest))

    @property
    def frames(self) -> list[Any]:
        """The frames to send."""
        return [self.identity, *self.rest]


@dataclass(frozen=True)
class AnswerForm:
    """How the arrays of a server's answers look.

    Attributes:
        width: dimensions of a vector.
        is_pooled: a vector a row, not one a token.
        max_tokens: the most that a row can have.
        pads_to_limit: rows of token vectors are padded to `max_tokens`, not to the longest
            row of their request.
        show_tokens: the tokens of each row are told.

    """

    width: int
    is_pooled: bool
    max_tokens: int
    pads_to_limit: bool
    show_tokens: bool

    @classmethod
    def of(cls, welcome: Welcome, *, pads_to_limit: bool, show_tokens: bool) -> AnswerForm:
        """Return the form that follows from a server's welcome and its options."""
        view, model = welcome.default_view, welcome.model
        return cls(
            width=view.width(model["hidden_size"], model.get("head_sizes", {})),
            is_pooled=view.pooling != "none",
            max_tokens=model["max_length"],
            pads_to_limit=pads_to_limit,
            show_tokens=show_tokens,
        )

    def nbytes(self, rows: Sequence[Row]) -> int:
        """Return about how large the array for rows becomes, reckoning a token a character."""
        if self.is_pooled:
            return len(rows) * self.width * FLOAT_BYTES
        longest = max(map(_size, rows)) + SPECIAL_TOKENS
        tokens = self.max_tokens if self.pads_to_limit else min(longest, self.max_tokens)
        return len(rows) * tokens * self.width * FLOAT_BYTES

    def array(self, values: Array | Sequence[Array]) -> npt.NDArray[np.float32]:
        """Return `[rows, dim]`, or of token vectors `[rows, tokens, dim]`: zeros end a row.

        Raises:
            ValueError: it would be larger than is allowed.

        """
        if isinstance(values, np.ndarray):
            return values
        longest = self.max_tokens if self.pads_to_limit else max(map(len, values))
        shape = (len(values), longest, self.width)
        check_size(len(values), math.prod(shape) * FLOAT_BYTES)
        padded = np.zeros(shape, np.float32)
        for row, vectors in zip(padded, values, strict=True):
            row[: len(vectors)] = vectors
        return padded


def check_size(rows: int, nbytes: int) -> None:
    """Raise ValueError for an answer that is too large to be put together."""
    if nbytes > MAX_ANSWER_BYTES:
        fewer = max(rows * MAX_ANSWER_BYTES // nbytes, 1)
        raise ValueError(
            f"the answer for {rows} rows would have {nbytes} bytes and at most {MAX_ANSWER_BYTES} "
            f"are allowed: send up to {fewer} rows like these at a time"
        )


def encoding_answer(request: LegacyRequest, form: AnswerForm, encoding: Encoding) -> LegacyAnswer:
    """Return the answer with embeddings.

    Raises:
        ValueError: it would be larger than is allowed.

    """
    array = form.array(encoding.views[EMBEDDING])
    header = {
        "dtype": str(array.dtype),
        "shape": array.shape,
        "tokens": encoding.tokens if form.show_tokens else "",
    }
    rest = [_packed(header), array_buffer(array), request.request_id]
    return LegacyAnswer(request.identity, rest)


def error_answer(request: LegacyRequest, message: str) -> LegacyAnswer:
    """Return the answer that makes the client raise an exception with a message."""
    header = {"dtype": _as_dtype(message), "shape": [0], "tokens": ""}
    return LegacyAnswer(request.identity, [_packed(header), b"", request.request_id])


def settings_answer(request: LegacyRequest, settings: Mapping[str, Any]) -> LegacyAnswer:
    """Return the answer to SHOW_CONFIG or SHOW_STATUS."""
    return LegacyAnswer(request.identity, [_packed(settings), request.request_id])


def settings_error_answer(request: LegacyRequest, message: str) -> LegacyAnswer:
    """Return the answer to SHOW_CONFIG or SHOW_STATUS when there is none."""
    return settings_answer(
        request,
        {
            "server_version": message,
            "error": message,
            "max_seq_len": None,
            "show_tokens_to_client": False,
        },
    )


def _as_dtype(message: str) -> str:
    """Return a message as a name that NumPy, old or new, quotes whole when it refuses it.

    It takes a comma for one between several types, and once took no character but ASCII.
    """
    line = " ".join(message.split()).replace(",", ";")[:MAX_ERROR_CHARS]
    return "bert-serving: " + line.encode("ascii", "backslashreplace").decode()


def _size(row: Row) -> int:
    """Return the characters of a text, or the number of tokens; of both sides of a pair."""
    return sum(map(len, row)) if isinstance(row, tuple) else len(row)


def _packed(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()
