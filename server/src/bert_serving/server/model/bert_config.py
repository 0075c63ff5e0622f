"""What a BERT's `config.json` says, checked; the estimate of its memory comes from it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .replica import ModelLoadError

# transformers' names of activations, by what they compute
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder.

    Attributes:
        num_layers: transformer layers.
        hidden_size: dimensions of a hidden state.
        num_heads: attention heads, each of `hidden_size / num_heads` dimensions.
        intermediate_size: dimensions inside the feed-forward block.
        activation: of the feed-forward block: `gelu` (erf), `gelu_tanh`, `relu`, `silu`.
        layer_norm_eps: added to the variance.
        vocab_size: token ids.
        max_positions: position embeddings.
        type_vocab_size: segment ids; 0 where there are no segment embeddings.
        embedding_size: dimensions of the embeddings.
        is_projected: whether a linear makes hidden states of the embeddings.
        padding_id: the token whose number positions are counted from, as RoBERTa does, which
            numbers a row's first token `padding_id + 1`; None where the first is 0.

    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    activation: str
    layer_norm_eps: float
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    embedding_size: int
    is_projected: bool = False
    padding_id: int | None = None

    @property
    def max_length(self) -> int:
        """The most tokens a row can have."""
        return self.max_positions - (0 if self.padding_id is None else self.padding_id + 1)

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> BertConfig:
        """Return what a `config.json` says, with all settings by BERT's names.

        Raises:
            ModelLoadError: a value that is missing or not allowed.

        """
        _check_positions(config)
        activation = config.get("hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            raise ModelLoadError(
                f"config.json: hidden_act={activation!r}: expected one of {', '.join(ACTIVATIONS)}"
            )
        hidden_size = _size(config, "hidden_size")
        embedding_size = (
            _size(config, "projected_size") if "projected_size" in config else hidden_size
        )
        parsed = cls(
            num_layers=_size(config, "num_hidden_layers"),
            hidden_size=hidden_size,
            num_heads=_size(config, "num_attention_heads"),
            intermediate_size=_size(config, "intermediate_size"),
            activation=ACTIVATIONS[activation],
            layer_norm_eps=_eps(config),
            vocab_size=_size(config, "vocab_size"),
            max_positions=_size(config, "max_position_embeddings"),
            type_vocab_size=_size(config, "type_vocab_size", least=0),
            embedding_size=embedding_size,
            is_projected=config.get("is_projected", embedding_size != hidden_size),
            padding_id=_padding_id(config),
        )
        if parsed.hidden_size % parsed.num_heads:
            raise ModelLoadError(
                f"config.json: hidden_size={parsed.hidden_size} is no multiple of "
                f"num_attention_heads={parsed.num_heads}"
            )
        return parsed

    def gflop(self, tokens: int, layers: int) -> float:
        """Return what the matrix products with weights cost; attention's own come on top."""
        per_token = 8 * self.hidden_size**2 + 4 * self.hidden_size * self.intermediate_size
        return tokens * layers * per_token / 1e9

    def num_weights(self) -> int:
        """Return how many numbers the encoder's weights are."""
        hidden, inner = self.hidden_size, self.intermediate_size
        layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden
        tables = self.vocab_size + self.max_positions + self.type_vocab_size + 2
        projection = (self.embedding_size + 1) * hidden if self.is_projected else 0
        return self.num_layers * layer + tables * self.embedding_size + projection


def _eps(config: Mapping[str, Any]) -> float:
    eps = config.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 <= eps < 1:
        raise ModelLoadError(f"config.json: layer_norm_eps={eps!r}: expected 0 to 1")
    return eps


def _check_positions(config: Mapping[str, Any]) -> None:
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ModelLoadError(
            f"config.json: position_embedding_type={positions!r}: expected absolute "
            "(transformers computes no other any more, either)"
        )


def _padding_id(config: Mapping[str, Any]) -> int | None:
    if not config.get("positions_follow_padding", False):
        return None
    padding_id = _size(config, "pad_token_id", least=0)
    if padding_id + 1 >= _size(config, "max_position_embeddings"):
        raise ModelLoadError(
            f"config.json: pad_token_id={padding_id} leaves no position: expected less than "
            f"max_position_embeddings={config['max_position_embeddings']}"
        )
    return padding_id


def _size(config: Mapping[str, Any], name: str, least: int = 1) -> int:
    value = config.get(name)
    if type(value) is not int or not least <= value < 1 << 31:
        raise ModelLoadError(f"config.json: {name}={value!r}: expected an int, at least {least}")
    return value
