"""The packed forward pass of BERT: all rows on one flat token axis, no padding, no mask.

Layers are those of BERT (Devlin et al. 2019, arXiv:1810.04805) as transformers computes
them. It knows weights and micro-batches, and nothing of rows, requests or views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import compress
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from .bert_config import BertConfig
from .checkpoint import Weights, take
from .encoder import States, TokenBatch, Wanted
from .heads import NO_HEADS, Heads
from .kernels import AddNorm, Attention, Kernels, Layer, Linear, WholeLayers
from .mapped_files import NO_FILES, MappedFiles
from .packing import padded_size
from .replica import BetweenLayers, nothing

_TABLES = "word", "token_type", "position"  # as ids, segment ids and positions follow each other

FEW_TOKENS = 96
"""A layer of so few is computed as a whole, although others may wait for a place to interrupt it:
it takes no longer than one of the products between which a large batch is interrupted, and up to a
fifth less than in parts."""


def finish_layer(
    layer: Layer, x: torch.Tensor, mixed: torch.Tensor, between_layers: BetweenLayers
) -> torch.Tensor:
    """Return the next hidden state of one and what attention has mixed of its tokens."""
    x = layer.attention_norm(layer.attention_out(mixed), x)
    between_layers()
    inner = layer.feed_in(x)
    between_layers()
    return layer.feed_norm(layer.feed_out(inner), x)


class BertEncoder:
    """BERT's embeddings and layers on one device, in one type.

    A layer's weights are packed when it is first needed: the layers beyond the deepest one
    that anybody asks for cost neither time at start nor memory. Until then they stay where
    `weights` has them, which for a file on disk is the file: `files` are looked at before.
    """

    def __init__(
        self,
        config: BertConfig,
        weights: Weights,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels,
        heads: Heads = NO_HEADS,
        has_positions: bool = True,
        compile: bool = False,  # noqa: A002  the option's name
        files: MappedFiles = NO_FILES,
    ) -> None:
        self.config = config
        self._device = device
        self._dtype = dtype
        self._weights = {
            name: take(weights, name, shape)
            for name, shape in weight_shapes(config, has_positions=has_positions).items()
        }
        self._files = files
        self._layers: list[Layer | None] = [None] * config.num_layers
        self._runs: dict[range, tuple[list[Layer], WholeLayers | None]] = {}
        self._kernels = kernels
        self._heads = heads
        self._finish = torch.compile(finish_layer, dynamic=True) if compile else finish_layer
        # in the checkpoint's own type: only some rows of them are ever used at a time
        tables = {
            name: self._weights[f"embeddings.{name}_embeddings.weight"].to(device)
            for name in _TABLES
            if f"embeddings.{name}_embeddings.weight" in self._weights
        }
        self._has_table = [name in tables for name in _TABLES]
        norm = self._norm_weights("embeddings.LayerNorm", torch.float32)
        self._embed_lines = kernels.embed(list(tables.values()), *norm, config.layer_norm_eps)
        self._drop_weights("embeddings")
        products = [weight.shape for weight in self._weights.values() if weight.dim() == 2]
        self._is_padded = not kernels.takes_any_size(products, dtype)
        self._project = self._linear("embeddings_project") if config.is_projected else None
        self._drop_weights("embeddings_project")

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
        return self._heads.sizes

    def forward(
        self,
        batch: TokenBatch,
        wanted: Wanted,
        *,
        between_layers: BetweenLayers = nothing,
    ) -> States:
        """Return what is wanted; see `Encoder`."""
        inputs: Sequence[torch.Tensor] = (batch.ids, batch.segment_ids, batch.positions)
        if self._is_padded:
            padding = padded_size(len(batch.ids)) - len(batch.ids)
            inputs = [F.pad(part, (0, padding)) for part in inputs]
        attend = self._kernels.attention(batch.groups, self.config.num_heads)
        needed = self.layers_for(wanted)
        last = max(needed, default=0)
        if last <= max(wanted.layers, default=0) or len(batch.ids) <= FEW_TOKENS:
            states = self.hidden_states(inputs, attend, needed, between_layers=between_layers)
            return self.answer(batch, states, wanted)
        # the deepest layer is wanted of first tokens only
        before = needed - {last} | {last - 1}
        states = self.hidden_states(inputs, attend, before, between_layers=between_layers)
        firsts = self._firsts_behind(last - 1, states[last - 1], attend, batch, between_layers)
        return self.answer(batch, states, wanted, {last: firsts})

    def layers_for(self, wanted: Wanted) -> frozenset[int]:
        """Return the numbers of the hidden states that are wanted, or that heads are made of."""
        return wanted.layers | self._firsts_for(wanted)

    def _firsts_for(self, wanted: Wanted) -> frozenset[int]:
        return wanted.firsts | {self.num_layers} if wanted.heads else wanted.firsts

    def hidden_states(
        self,
        inputs: Sequence[torch.Tensor],
        attend: Attention,
        layers: AbstractSet[int],
        *,
        between_layers: BetweenLayers = nothing,
    ) -> dict[int, torch.Tensor]:
        """Return hidden states by their numbers, padding included.

        Args:
            inputs: ids, segment ids and positions of the tokens, and of any padding behind them.
            attend: the attention of their rows.
            layers: which states are wanted; no layer beyond the deepest one is computed.
            between_layers: see `Encoder`; called between the parts of a layer as well, the
                longest of which are its matrix products, unless it is computed as a whole.
                With `nothing`, so are all layers on the way to a state that is wanted.

        """
        x = self._embed(*inputs)
        states = {}
        reached = 0
        for number in sorted(layers):
            run = range(reached, number)
            for part in [run] if between_layers is nothing else map(_single, run):
                x = self._behind(part, x, attend, between_layers)
                between_layers()
            states[number] = x
            reached = number
        return states

    def answer(
        self,
        batch: TokenBatch,
        states: Mapping[int, torch.Tensor],
        wanted: Wanted,
        firsts: Mapping[int, torch.Tensor] = MappingProxyType({}),
    ) -> States:
        """Return what is wanted, of hidden states that may have padding.

        Args:
            batch: the micro-batch.
            states: `[tokens and padding, hidden]`, by their numbers.
            wanted: what is asked of it.
            firsts: states that are there for each row's first token only, `[rows, hidden]`.

        """
        of_firsts = {
            number: firsts[number] if number in firsts else batch.firsts(states[number])
            for number in self._firsts_for(wanted)
        }
        return States(
            {number: states[number][: batch.ids.shape[0]] for number in wanted.layers},
            of_firsts,
            self._heads(of_firsts[self.num_layers], wanted.heads) if wanted.heads else {},
        )

    def _embed(
        self, ids: torch.Tensor, segment_ids: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Return hidden state 0."""
        if self.config.padding_id is not None:
            positions = positions_behind(self.config.padding_id, ids, positions)
        numbers = compress((ids, segment_ids, positions), self._has_table)
        x = self._embed_lines(list(numbers)).to(self._dtype)
        return x if self._project is None else self._project(x)

    def _behind(
        self, run: range, x: torch.Tensor, attend: Attention, between_layers: BetweenLayers
    ) -> torch.Tensor:
        """Return the hidden state behind a run of layers, of the one before it."""
        layers, whole = self._runs.get(run) or self._build_run(run)
        is_short = between_layers is nothing or x.shape[0] <= FEW_TOKENS
        if whole is not None and is_short and whole.takes(attend):
            return whole(x, attend)
        for layer in layers:
            mixed = attend(layer.qkv(x))
            between_layers()
            x = self._finish(layer, x, mixed, between_layers)
        return x

    def _firsts_behind(
        self,
        number: int,
        x: torch.Tensor,
        attend: Attention,
        batch: TokenBatch,
        between_layers: BetweenLayers,
    ) -> torch.Tensor:
        """Return the hidden state of each row's first token behind a layer, `[rows, hidden]`.

        Of the other tokens their keys and values are needed, and nothing that comes after.
        """
        layer = self._layers[number] or self._build_layer(number)
        mixed = attend(layer.qkv(x))
        between_layers()
        x, mixed = batch.firsts(x), batch.firsts(mixed)
        rows = len(x)
        if self._is_padded:
            x, mixed = (F.pad(part, (0, 0, 0, padded_size(rows) - rows)) for part in (x, mixed))
        x = self._finish(layer, x, mixed, between_layers)[:rows]
        between_layers()
        return x

    def _build_run(self, run: range) -> tuple[list[Layer], WholeLayers | None]:
        layers = [self._layers[number] or self._build_layer(number) for number in run]
        built = self._runs[run] = layers, self._kernels.whole_layers(layers) if layers else None
        return built

    def _build_layer(self, number: int) -> Layer:
        self._files.check()
        root = f"encoder.layer.{number}"
        weight, bias = self._qkv(f"{root}.attention.self")
        layer = Layer(
            qkv=self._kernels.linear(self._place(weight), self._place(bias)),
            attention_out=self._linear(f"{root}.attention.output.dense"),
            attention_norm=self._add_norm(f"{root}.attention.output.LayerNorm"),
            feed_in=self._linear(f"{root}.intermediate.dense", self.config.activation),
            feed_out=self._linear(f"{root}.output.dense"),
            feed_norm=self._add_norm(f"{root}.output.LayerNorm"),
        )
        self._layers[number] = layer
        # not before: one that memory did not suffice for is built again
        self._drop_weights(root)
        return layer

    def _qkv(self, root: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one weight and bias for query, key and value, with the query's scale in them."""
        scale = (self.config.hidden_size // self.config.num_heads) ** -0.5
        scales = {"query": scale, "key": 1.0, "value": 1.0}
        weight, bias = (
            torch.cat(
                [self._weights[f"{root}.{name}.{part}"].float() * by for name, by in scales.items()]
            )
            for part in ("weight", "bias")
        )
        return weight, bias

    def _linear(self, root: str, activation: str | None = None) -> Linear:
        weight, bias = (self._weights[f"{root}.{part}"] for part in ("weight", "bias"))
        return self._kernels.linear(self._place(weight), self._place(bias), activation)

    def _add_norm(self, root: str) -> AddNorm:
        weight, bias = self._norm_weights(root, self._dtype)
        return self._kernels.add_norm(weight, bias, self.config.layer_norm_eps)

    def _norm_weights(self, root: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (
            self._weights[f"{root}.{part}"].to(self._device, dtype) for part in ("weight", "bias")
        )
        return weight, bias

    def _drop_weights(self, root: str) -> None:
        """Keep the weights of a part no longer, as it has its own by now."""
        for name in [name for name in self._weights if name.startswith(f"{root}.")]:
            del self._weights[name]

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._dtype)


def _single(number: int) -> range:
    return range(number, number + 1)


def positions_behind(padding_id: int, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return positions as RoBERTa counts them: from behind the padding's number.

    A padding token that stands in a text has the padding's number, and is not counted.
    """
    is_counted = (ids != padding_id).long()
    counts = is_counted.cumsum(0)
    starts = torch.arange(len(ids), device=ids.device) - positions
    before_row = (counts - is_counted)[starts]
    return (counts - before_row) * is_counted + padding_id


def weight_shapes(config: BertConfig, *, has_positions: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all weights that the encoder needs."""
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.embedding_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    if has_positions:
        shapes["embeddings.position_embeddings.weight"] = (config.max_positions, width)
    if config.type_vocab_size:
        shapes["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, width)
    if config.is_projected:
        shapes["embeddings_project.weight"] = (hidden, width)
        shapes["embeddings_project.bias"] = (hidden,)
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
