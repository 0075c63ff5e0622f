"""Makes a model of any architecture through transformers, and lets it make nothing up.

transformers fills what a checkpoint lacks with random numbers, leaves out what it has too
much, and says so in its log. Here both are errors, but for a pooler that was never trained.
It knows files and classes, and nothing of batches; `transformers_encoder` computes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from .families import FAMILIES, class_names
from .quiet_transformers import quiet_transformers
from .replica import ModelLoadError

# of a model whose files name no limit
_DEFAULT_MAX_LENGTH = 4096

# numbers that transformers once saved with the weights, and now computes
_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")


@dataclass(frozen=True)
class TransformersPlan:
    """What is known of a model before its weights are read.

    Attributes:
        config: transformers' own.
        skeleton: the model without its numbers.
        is_classifier: whether it has labels to give scores to.

    """

    config: Any
    skeleton: Any
    is_classifier: bool

    @property
    def hidden_size(self) -> int:
        """Dimensions of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Token ids."""
        return int(self.config.vocab_size)

    @property
    def max_length(self) -> int:
        """The most tokens a row can have."""
        limits = [getattr(self.config, "max_position_embeddings", None)]
        for name, module in self.skeleton.named_modules():
            if name.endswith("position_embeddings") and hasattr(module, "weight"):
                # RoBERTa's kin count positions from behind the padding's number
                padding = getattr(module, "padding_idx", None)
                limits.append(len(module.weight) - (0 if padding is None else padding + 1))
        known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
        return min(known, default=_DEFAULT_MAX_LENGTH)

    def num_weights(self) -> int:
        """Return how many numbers the model's weights are."""
        return sum(weight.numel() for weight in self.skeleton.parameters())

    def load(self, directory: Path, dtype: torch.dtype) -> LoadedModel:
        """Return the model with its weights.

        Raises:
            ModelLoadError: no weights, or others than the model has.

        """
        auto = AutoModelForSequenceClassification if self.is_classifier else AutoModel
        with _one_line_errors(f"{directory}: transformers cannot load it"), quiet_transformers():
            model, found = auto.from_pretrained(
                str(directory),
                config=self.config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told of below, by name
                local_files_only=True,
            )
        for name, in_file, in_model in sorted(found["mismatched_keys"]):
            raise ModelLoadError(
                f"weight {name} is {tuple(in_file)}: config.json asks for {tuple(in_model)}"
            )
        missing = sorted(found["missing_keys"])
        untrained = [name for name in missing if _is_pooler(name) and not self.is_classifier]
        _refuse("has no weight", [name for name in missing if name not in untrained])
        _refuse("has weights the model has no place for:", _extra(model, found["unexpected_keys"]))
        return LoadedModel(model.eval(), has_pooler=not untrained)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights; `has_pooler` is whether those of a pooler are among them."""

    model: Any
    has_pooler: bool


def plan_model(settings: Mapping[str, Any]) -> TransformersPlan:
    """Return what transformers would make of a `config.json`.

    Raises:
        ModelLoadError: nothing, or a decoder, or what reads no token ids.

    """
    model_type = str(settings.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ModelLoadError(
            f"config.json: model_type={settings.get('model_type')!r} cannot be served: expected "
            f"{', '.join(FAMILIES)}, or an encoder that transformers {transformers.__version__} has"
        )
    is_classifier = any(
        name.endswith("ForSequenceClassification") for name in class_names(settings)
    )
    auto = AutoModelForSequenceClassification if is_classifier else AutoModel
    with _one_line_errors(f"config.json: model_type={model_type!r}"), quiet_transformers():
        config = CONFIG_MAPPING[model_type].from_dict(dict(settings))
        _check_is_encoder(config)
        config.return_dict = True
        if hasattr(config, "reference_compile"):
            config.reference_compile = False  # ModernBERT would compile itself
        if getattr(config, "attention_type", None) == "block_sparse":
            config.attention_type = "original_full"  # BigBird's for good after one short row
        with torch.device("meta"):
            skeleton = auto.from_config(config)  # type: ignore[no-untyped-call]
    for name in ("hidden_size", "vocab_size"):
        if not isinstance(getattr(config, name, None), int):
            raise ModelLoadError(f"config.json: model_type={model_type!r} has no {name}")
    if "input_ids" not in inspect.signature(skeleton.forward).parameters:
        raise ModelLoadError(f"config.json: model_type={model_type!r} reads no texts")
    return TransformersPlan(config, skeleton, is_classifier)


def _check_is_encoder(config: Any) -> None:
    kind = config.model_type
    is_causal = (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not getattr(config, "use_bidirectional_attention", False)
    )
    for is_wrong, what in (
        (getattr(config, "is_encoder_decoder", False), "an encoder with a decoder"),
        (getattr(config, "is_decoder", False), "a decoder (is_decoder=true)"),
        (is_causal, "a decoder"),
    ):
        if is_wrong:
            raise ModelLoadError(f"config.json: model_type={kind!r} is {what}: expected an encoder")


def _extra(model: Any, unexpected: Sequence[str]) -> list[str]:
    """Return which of the weights left over are the encoder's own, and no other head's."""
    parts = {name for name, _ in model.base_model.named_children()}
    prefix = f"{model.base_model_prefix}."
    return sorted(
        name
        for name in unexpected
        if name.removeprefix(prefix).split(".")[0] in parts
        and not name.endswith(_BUFFERS)
        and not _is_pooler(name)
    )


def _is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _refuse(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelLoadError(f"the checkpoint {what} {', '.join(names[:3])}{more}")


@contextlib.contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Make whatever transformers raises the one line that an operator is told."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:  # noqa: BLE001  its classes raise anything
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelLoadError(f"{what}: {text}") from None
