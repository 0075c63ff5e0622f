"""Which architectures compute what BERT computes, and what their files call it.

A family is packed: `bert` computes it from BERT's own names. What no family here describes,
`transformers_encoder` computes. It knows names only: nothing of tensors or of layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .bert_config import ACTIVATIONS, BertConfig
from .checkpoint import Weights
from .replica import ModelLoadError


@dataclass(frozen=True)
class Family:
    """How an architecture's settings and weights are called.

    Attributes:
        weights: patterns in its weights' names, and what BERT has in their place, in the order
            in which they are applied.
        settings: its own names for BERT's settings, where they differ.
        defaults: settings that its `config.json` may leave out.
        constants: settings that are fixed, whatever its `config.json` says.

    """

    weights: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)

    def parse_config(self, config: Mapping[str, Any]) -> BertConfig:
        """Return what a `config.json` of this family says; see `BertConfig.parse`."""
        own = {name: config[theirs] for name, theirs in self.settings.items() if theirs in config}
        return BertConfig.parse({**self.defaults, **config, **own, **self.constants})

    def rename(self, weights: Weights) -> Weights:
        """Return a checkpoint's weights by BERT's names; heads keep their own."""
        return {self._bert_name(name): tensor for name, tensor in weights.items()}

    def _bert_name(self, name: str) -> str:
        for pattern, replacement in self.weights.items():
            name = re.sub(pattern, replacement, name, count=1)
        return name


_ROBERTA = Family(
    {r"^roberta\.": ""},
    defaults={"pad_token_id": 1},
    constants={"positions_follow_padding": True},
)

_DISTILBERT = Family(
    {
        r"^distilbert\.": "",
        r"^transformer\.": "encoder.",
        r"\.attention\.q_lin\.": ".attention.self.query.",
        r"\.attention\.k_lin\.": ".attention.self.key.",
        r"\.attention\.v_lin\.": ".attention.self.value.",
        r"\.attention\.out_lin\.": ".attention.output.dense.",
        r"\.sa_layer_norm\.": ".attention.output.LayerNorm.",
        r"\.ffn\.lin1\.": ".intermediate.dense.",
        r"\.ffn\.lin2\.": ".output.dense.",
        r"\.output_layer_norm\.": ".output.LayerNorm.",
    },
    settings={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    },
    constants={"layer_norm_eps": 1e-12, "type_vocab_size": 0},
)

FAMILIES = {
    "bert": Family(),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": Family(
        {r"^data2vec_text\.": ""}, defaults=_ROBERTA.defaults, constants=_ROBERTA.constants
    ),
    "distilbert": _DISTILBERT,
    "electra": Family(
        {r"^electra\.": ""},
        settings={"projected_size": "embedding_size"},
        defaults={"projected_size": 128},
    ),
    "ernie": Family({r"^ernie\.": ""}),
    "splinter": Family({r"^splinter\.": ""}),
    "rembert": Family(
        {r"^rembert\.": "", r"^encoder\.embedding_hidden_mapping_in\.": "embeddings_project."},
        settings={"projected_size": "input_embedding_size"},
        defaults={"projected_size": 256},
        constants={"is_projected": True},
    ),
}
"""The packed architectures, by the `model_type` of their `config.json`."""

# settings that make another computation of it
_OTHERWISE = ("is_decoder", "add_cross_attention", "use_task_id")


def find_family(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a `config.json`; None where the computation is not BERT's."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or any(config.get(name) for name in _OTHERWISE):
        return None
    activation = config.get(family.settings.get("hidden_act", "hidden_act"), "gelu")
    return family if str(activation) in ACTIVATIONS else None


def class_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of transformers' classes that a `config.json` was saved by.

    Raises:
        ModelLoadError: they are no list.

    """
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise ModelLoadError(f"config.json: architectures={names!r}: expected a list of names")
    return [str(name) for name in names]
