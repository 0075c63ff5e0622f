"""How large answers may be: each, and all of a batch together.

A request of a few bytes may ask for gigabytes, and whoever passes them on holds them whole. How
many there will be is known as soon as the rows are tokenized. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bert_serving.client.messages import ErrorAnswer

from .model.replica import EncodeRequest, ModelInfo

MAX_ANSWER_BYTES = 1 << 30
"""Of arrays: all layers of BERT-large, a vector a token, for the rows of one request as the
client library cuts them, are 0.8 of it."""

RETRY_MS = 1_000  # the batch that there is no room beside may be done by then


def answer_bytes(request: EncodeRequest, info: ModelInfo) -> int:
    """Return how many bytes the arrays of a request's answer will have; its views are filled."""
    rows = request.rows
    return sum(
        (len(rows.ids) if view.pooling == "none" else len(rows))
        * view.width(info.hidden_size, info.head_sizes)
        * np.dtype(view.dtype).itemsize
        for view in request.views.values()
    )


def refusals(ids: Sequence[int], sizes: Sequence[int]) -> dict[int, ErrorAnswer]:
    """Return the errors for those of a batch that are not to be computed, by their places.

    These are the largest: who asks for little is answered whatever others ask for.

    Args:
        ids: the requests' own.
        sizes: bytes of their answers.

    """
    if sum(sizes) <= MAX_ANSWER_BYTES:
        return {}
    refused = {}
    left = MAX_ANSWER_BYTES
    for place in sorted(range(len(sizes)), key=sizes.__getitem__):
        left -= sizes[place]
        if left < 0:
            refused[place] = _refusal(ids[place], sizes[place])
    return refused


def _refusal(request_id: int, size: int) -> ErrorAnswer:
    if size > MAX_ANSWER_BYTES:
        return ErrorAnswer(
            request_id,
            "too_large",
            f"the answer would have {size} bytes, and at most {MAX_ANSWER_BYTES} are allowed; "
            "send fewer rows at a time, or ask for fewer layers, views or dims, or for a pooling",
        )
    return ErrorAnswer(
        request_id,
        "overloaded",
        f"with its {size} bytes the answers to this batch would have more than the "
        f"{MAX_ANSWER_BYTES} that are allowed; try again later",
        RETRY_MS,
    )
