"""What a replica asks of a transformer on a device, whichever way that computes.

`bert` (packed, hand-written) and `transformers_encoder` (any architecture, through
transformers) implement `Encoder`; what is done with its states, `pooling` and `heads` know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from .packing import Group
from .replica import BetweenLayers, nothing
from .segments import Segments


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch on the encoder's device.

    Attributes:
        ids: vocabulary ids, int64 `[tokens]`.
        segment_ids: 0 in a row's first text, 1 in its second, int64 `[tokens]`.
        positions: each token's number inside its row, int64 `[tokens]`.
        groups: rows of equal length; together they cover the tokens.
        segments: the same rows, for a device that takes all of them at once; None for one
            that takes them a group at a time.

    """

    ids: torch.Tensor
    segment_ids: torch.Tensor
    positions: torch.Tensor
    groups: Sequence[Group]
    segments: Segments | None = None

    def firsts(self, values: torch.Tensor) -> torch.Tensor:
        """Return the lines of each row's first token, `[rows, ...]`, of `[tokens, ...]`."""
        if self.segments is not None:
            return self.segments.first(values)
        return torch.cat([values[group.token : group.end : group.length] for group in self.groups])


@dataclass(frozen=True)
class Wanted:
    """What is asked of an encoder.

    Attributes:
        layers: hidden states of all tokens, by layer number, 0 the embeddings.
        firsts: hidden states of each row's first token.
        heads: its own heads, by name.

    """

    layers: frozenset[int] = frozenset()
    firsts: frozenset[int] = frozenset()
    heads: frozenset[str] = frozenset()


@dataclass(frozen=True)
class States:
    """What an encoder computed of a micro-batch, as it was `Wanted`.

    Attributes:
        layers: hidden states by layer number, each `[tokens, hidden]`.
        firsts: those of each row's first token, each `[rows, hidden]`.
        heads: what its own heads made of the last layer, by name, each `[rows, width]`:
            `pooler`, and `logits`, the scores of its labels before any softmax.

    """

    layers: Mapping[int, torch.Tensor] = field(default_factory=dict)
    firsts: Mapping[int, torch.Tensor] = field(default_factory=dict)
    heads: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Encoder(Protocol):
    """A transformer's embeddings, layers and heads on one device, in one type."""

    @property
    def num_layers(self) -> int:
        """Transformer layers; there is one more hidden state, the embeddings."""

    @property
    def hidden_size(self) -> int:
        """Dimensions of a hidden state."""

    @property
    def vocab_size(self) -> int:
        """Token ids."""

    @property
    def num_segments(self) -> int:
        """Segment ids that it tells apart; 0 where it takes none and pairs all the same."""

    @property
    def head_sizes(self) -> Mapping[str, int]:
        """The widths of the heads it has, by their names in `States`."""

    def forward(
        self,
        batch: TokenBatch,
        wanted: Wanted,
        *,
        between_layers: BetweenLayers = nothing,
    ) -> States:
        """Return what is wanted; no layer beyond the deepest one is computed.

        `between_layers` may compute another batch by this same encoder.
        """
