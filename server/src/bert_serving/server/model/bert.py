"""The packed forward pass of BERT: all rows on one flat token axis, no padding, no mask.

Layers are those of BERT (Devlin et al. 2019, arXiv:1810.04805) as transformers computes
them. It knows weights and micro-batches, and nothing of rows, requests or views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from .bert_config import BertConfig
from .checkpoint import Weights, take
from .encoder import States, TokenBatch
from .kernels import Attend, Linear, LinearMaker
from .packing import Group, padded_size

Norm = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One transformer layer; `qkv` gives query, key and value side by side, query scaled."""

    qkv: Linear
    attention_out: Linear
    attention_norm: Norm
    feed_in: Linear
    feed_out: Linear
    feed_norm: Norm

    def __call__(
        self, x: torch.Tensor, groups: Sequence[Group], attend: Attend, num_heads: int
    ) -> torch.Tensor:
        """Return the next hidden state, `[tokens, hidden]`."""
        mixed = attend(self.qkv(x), groups, num_heads)
        x = self.attention_norm(self.attention_out(mixed).add_(x))
        return self.feed_norm(self.feed_out(self.feed_in(x)).add_(x))


class BertEncoder:
    """BERT's embeddings and layers on one device, in one type.

    A layer's weights are packed when it is first needed: the layers beyond the deepest one
    that anybody asks for cost neither time at start nor memory. Until then they stay where
    `weights` has them, which for a file on disk is the file.
    """

    def __init__(
        self,
        config: BertConfig,
        weights: Weights,
        *,
        device: torch.device,
        dtype: torch.dtype,
        make_linear: LinearMaker,
        attend: Attend,
    ) -> None:
        self.config = config
        self._device = device
        self._dtype = dtype
        self._weights = {
            name: take(weights, name, shape) for name, shape in weight_shapes(config).items()
        }
        self._layers: list[Layer | None] = [None] * config.num_layers
        self._make_linear = make_linear
        self._attend = attend
        # in the checkpoint's own type: only some rows of them are ever used at a time
        self._words, self._positions, self._segments = (
            self._weights.pop(f"embeddings.{name}_embeddings.weight").to(device)
            for name in ("word", "position", "token_type")
        )
        self._norm = self._layer_norm("embeddings.LayerNorm", torch.float32)

    @property
    def num_layers(self) -> int:
        """See `Encoder`."""
        return self.config.num_layers

    @property
    def hidden_size(self) -> int:
        """See `Encoder`."""
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """See `Encoder`."""
        return self.config.vocab_size

    @property
    def num_segments(self) -> int:
        """See `Encoder`."""
        return self.config.type_vocab_size

    @property
    def head_sizes(self) -> Mapping[str, int]:
        """See `Encoder`."""
        return {}

    def forward(
        self, batch: TokenBatch, layers: AbstractSet[int], heads: AbstractSet[str]
    ) -> States:
        """Return the states and heads wanted; see `Encoder`."""
        assert not heads
        tokens, padding = len(batch.ids), (0, padded_size(len(batch.ids)) - len(batch.ids))
        ids, segment_ids, positions = (
            F.pad(part, padding) for part in (batch.ids, batch.segment_ids, batch.positions)
        )
        x = F.embedding(ids, self._words).float()
        x += F.embedding(segment_ids, self._segments)
        x += F.embedding(positions, self._positions)
        x = self._norm(x).to(self._dtype)
        states = {0: x}
        for number in range(1, max(layers, default=0) + 1):
            x = self._layer(number - 1)(x, batch.groups, self._attend, self.config.num_heads)
            states[number] = x
            if number - 1 not in layers:
                # its memory serves the next layer
                del states[number - 1]
        return States(
            {number: state[:tokens] for number, state in states.items() if number in layers}
        )

    def _layer(self, number: int) -> Layer:
        layer = self._layers[number]
        if layer is None:
            layer = self._layers[number] = self._build_layer(number)
        return layer

    def _build_layer(self, number: int) -> Layer:
        root = f"encoder.layer.{number}"
        weight, bias = self._qkv(f"{root}.attention.self")
        return Layer(
            qkv=self._make_linear(self._place(weight), self._place(bias)),
            attention_out=self._linear(f"{root}.attention.output.dense"),
            attention_norm=self._layer_norm(f"{root}.attention.output.LayerNorm", self._dtype),
            feed_in=self._linear(f"{root}.intermediate.dense", self.config.activation),
            feed_out=self._linear(f"{root}.output.dense"),
            feed_norm=self._layer_norm(f"{root}.output.LayerNorm", self._dtype),
        )

    def _qkv(self, root: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one weight and bias for query, key and value, with the query's scale in them."""
        scale = (self.config.hidden_size // self.config.num_heads) ** -0.5
        scales = {"query": scale, "key": 1.0, "value": 1.0}
        weight, bias = (
            torch.cat(
                [
                    self._weights.pop(f"{root}.{name}.{part}").float() * by
                    for name, by in scales.items()
                ]
            )
            for part in ("weight", "bias")
        )
        return weight, bias

    def _linear(self, root: str, activation: str | None = None) -> Linear:
        weight, bias = (self._weights.pop(f"{root}.{part}") for part in ("weight", "bias"))
        return self._make_linear(self._place(weight), self._place(bias), activation)

    def _layer_norm(self, root: str, dtype: torch.dtype) -> Norm:
        shape, eps = (self.config.hidden_size,), self.config.layer_norm_eps
        weight, bias = (
            self._weights.pop(f"{root}.{part}").to(self._device, dtype)
            for part in ("weight", "bias")
        )
        return lambda x: F.layer_norm(x, shape, weight, bias, eps)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._dtype)


def weight_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all weights that the encoder needs."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_positions, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    linears = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for number in range(config.num_layers):
        root = f"encoder.layer.{number}"
        for name, shape in linears.items():
            shapes[f"{root}.{name}.weight"] = shape
            shapes[f"{root}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{root}.{name}.weight"] = shapes[f"{root}.{name}.bias"] = (hidden,)
    return shapes
