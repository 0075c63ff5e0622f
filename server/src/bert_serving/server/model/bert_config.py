"""What a BERT's `config.json` says, checked; the estimate of its memory comes from it alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .replica import ModelLoadError

ARCHITECTURES = ("bert",)

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
        max_positions: position embeddings, so the most tokens a row can have.
        type_vocab_size: segment ids.

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

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> BertConfig:
        """Return what a `config.json` says.

        Raises:
            ModelLoadError: another architecture, or a value that is missing or not allowed.

        """
        _check_architecture(config)
        activation = config.get("hidden_act", "gelu")
        if activation not in ACTIVATIONS:
            raise ModelLoadError(
                f"config.json: hidden_act={activation!r}: expected one of {', '.join(ACTIVATIONS)}"
            )
        eps = config.get("layer_norm_eps", 1e-12)
        if not isinstance(eps, float) or not 0 <= eps < 1:
            raise ModelLoadError(f"config.json: layer_norm_eps={eps!r}: expected 0 to 1")
        parsed = cls(
            num_layers=_size(config, "num_hidden_layers"),
            hidden_size=_size(config, "hidden_size"),
            num_heads=_size(config, "num_attention_heads"),
            intermediate_size=_size(config, "intermediate_size"),
            activation=ACTIVATIONS[activation],
            layer_norm_eps=eps,
            vocab_size=_size(config, "vocab_size"),
            max_positions=_size(config, "max_position_embeddings"),
            type_vocab_size=_size(config, "type_vocab_size"),
        )
        if parsed.hidden_size % parsed.num_heads:
            raise ModelLoadError(
                f"config.json: hidden_size={parsed.hidden_size} is no multiple of "
                f"num_attention_heads={parsed.num_heads}"
            )
        return parsed

    def num_weights(self) -> int:
        """Return how many numbers the encoder's weights are."""
        hidden, inner = self.hidden_size, self.intermediate_size
        layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden
        tables = self.vocab_size + self.max_positions + self.type_vocab_size + 2
        return self.num_layers * layer + tables * hidden


def _check_architecture(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelLoadError(
            f"config.json: model_type={model_type!r} cannot be served: "
            f"expected {', '.join(ARCHITECTURES)}"
        )
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ModelLoadError(
            f"config.json: position_embedding_type={positions!r}: expected absolute"
        )
    if config.get("is_decoder", False):
        raise ModelLoadError("config.json: is_decoder=true: expected an encoder")


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ModelLoadError(f"config.json: {name}={value!r}: expected an int above 0")
    return value
