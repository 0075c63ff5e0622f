"""What a worker asks of a model on a device, whatever the model and the device are.

`bert` (packed, hand-written) and `fake` (NumPy, for tests) implement `Replica`; the
worker knows nothing else about models. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bert_serving.client.messages import ViewArray
from bert_serving.client.rows import Row
from bert_serving.client.view import View

BetweenLayers = Callable[[], None]


def nothing() -> None:
    """Do nothing between layers: they may be computed in one go."""


class ModelLoadError(Exception):
    """The model cannot be served; the message names the cause in one line."""


class DeviceLost(Exception):
    """The device computes nothing any more in this process, whatever it is asked for."""


@dataclass(frozen=True)
class ModelInfo:
    """What clients and operators may know of a model.

    Attributes:
        name: what was asked for (a directory, a hub name, `embedded`).
        architecture: as its config names it, such as `bert`.
        num_layers: transformer layers; there is one more hidden state, the embeddings.
        hidden_size: dimensions of a hidden state.
        max_length: most tokens a row can have, special ones included.
        vocab_size: number of token ids.
        dtype: what it computes in, such as `float32`.
        device: where, such as `cpu` or `cuda:0`.
        head_sizes: the widths of those of the client's `HEADS` that this model has.

    """

    name: str
    architecture: str
    num_layers: int
    hidden_size: int
    max_length: int
    vocab_size: int
    dtype: str
    device: str
    head_sizes: Mapping[str, int] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """Return the fields as msgpack can pack them."""
        return asdict(self)


@dataclass(slots=True)
class TokenRows:
    """Rows as the model reads them, flat: row i has the next `lengths[i]` tokens.

    Attributes:
        ids: vocabulary ids, int32 `[tokens]`.
        segment_ids: 0 in a row's first text, 1 in its second, uint8 `[tokens]`.
        special: whether the tokenizer added the token ([CLS], [SEP]), bool `[tokens]`.
        lengths: tokens of each row, int32 `[rows]`.
        truncated: whether the row was cut to the maximum length, bool `[rows]`.

    """

    ids: npt.NDArray[np.int32]
    segment_ids: npt.NDArray[np.uint8]
    special: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lengths)


@dataclass(slots=True)
class EncodeRequest:
    """One request's share of a batch: its rows, and the views wanted of them."""

    rows: TokenRows
    views: Mapping[str, View] = field(default_factory=dict)


class Replica(Protocol):
    """One model on one device; used by one worker, never by two threads at a time.

    `tokenize` may run in another thread than `encode`, at the same time.
    """

    @property
    def info(self) -> ModelInfo:
        """What is served."""

    @property
    def max_batch_tokens(self) -> int:
        """Tokens that the device takes at a time: the worker's budget."""

    def tokenize(
        self, rows: Sequence[Row], *, is_tokenized: bool, max_length: int | None
    ) -> TokenRows:
        """Return rows as token ids, cut to `max_length` (at most the model's own limit).

        Raises:
            ValueError: `max_length` leaves no room for a token beside the special ones.

        """

    def token_texts(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the token strings of vocabulary ids."""

    def check_view(self, view: View) -> None:
        """Raise ValueError if this model cannot give a (filled) view: no such layer or head."""

    def advice(self, default_view: View) -> str | None:
        """Return what an operator should know who serves it by this view; None for nothing."""

    def encode(
        self,
        requests: Sequence[EncodeRequest],
        *,
        between_layers: BetweenLayers = nothing,
        max_tokens: int | None = None,
    ) -> list[dict[str, ViewArray]]:
        """Return each request's arrays by view name; views are filled and checked.

        A request's rows keep their order. The values do not depend on what else is in
        the batch. A batch may be larger than `max_batch_tokens`: it is computed in parts.

        Args:
            requests: the batch.
            between_layers: called often while it is computed; it may call `encode` itself,
                for what cannot wait.
            max_tokens: tokens to compute at a time, where that is less than
                `max_batch_tokens`: the smaller, the more often something can go between.

        Raises:
            DeviceLost: neither this batch nor any other can be computed any more.

        """
