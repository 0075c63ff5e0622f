"""How sentence-transformers makes vectors of a model, as the files in its directory say it.

`modules.json` lists modules, each with a folder of its own: here a Transformer, a Pooling,
and any number of Dense and Normalize are understood. A directory without it is a
Transformer and the mean over its tokens, as sentence-transformers itself takes it. Code is
never loaded, and no class is looked up by the name that a file gives: where a module is
unknown, `auto` is what the model does not have, and whoever asks for it is told why.

Prompts (`config_sentence_transformers.json`) are not applied: they are the caller's text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name

from bert_serving.client.view import View

from .auto_pooling import SENTENCE_POOLINGS, AutoPooling, Residual, Step
from .checkpoint import Checkpoint, read_json, take
from .heads import Activation, Dense, as_it_is
from .replica import ModelLoadError

MODULES = "modules.json"

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")

# before `pooling_mode` a Pooling had a flag for each
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

# torch's classes by their last name, as sentence-transformers makes them: without arguments
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": as_it_is,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "ReLU": torch.relu,
    "LeakyReLU": F.leaky_relu,
    "ELU": F.elu,
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Mish": F.mish,
}


@dataclass(frozen=True)
class SentenceRecipe:
    """What sentence-transformers does with a model.

    Attributes:
        pooling: from its last layer to vectors; None where that is not understood.
        problem: why it is not.
        max_length: tokens that rows are cut to; None is the model's own limit.
        lower_case: whether case is folded before the tokenizer sees a text.
        steps: what it does, in words; empty where the directory does not say.

    """

    pooling: AutoPooling | None
    problem: str = ""
    max_length: int | None = None
    lower_case: bool = False
    steps: str = ""

    @property
    def head_sizes(self) -> dict[str, int]:
        """The width of `auto`, if there is such a pooling."""
        return {} if self.pooling is None else {"auto": self.pooling.size}

    def check_view(self, view: View, hidden_size: int) -> None:
        """Raise ValueError if a (filled) view asks for `auto` and cannot have it."""
        if view.pooling != "auto":
            return
        if self.pooling is None:
            raise ValueError(f"pooling='auto': {self.problem}")
        side_by_side = len(view.layers or ()) if view.layer_reduce == "concat" else 1
        if side_by_side * hidden_size != self.pooling.input_size:
            raise ValueError(
                f"pooling='auto' takes vectors of {self.pooling.input_size} dimensions, "
                f"layers={list(view.layers or ())} side by side have "
                f"{side_by_side * hidden_size}: ask for one, or layer_reduce sum or mean"
            )

    def advice(self, default_view: View) -> str | None:
        """Return what to type for sentence-transformers' vectors, unless that is the default."""
        if not self.steps or (default_view.pooling == "auto" and default_view.layers == (-1,)):
            return None
        length = f", of at most {self.max_length} tokens" if self.max_length else ""
        return (
            f"sentence-transformers makes this model's vectors otherwise ({self.steps}{length}): "
            "for the same ones add -pooling_strategy AUTO -pooling_layer -1"
        )


def read_sentence_recipe(directory: Path, hidden_size: int, device: torch.device) -> SentenceRecipe:
    """Return what sentence-transformers does with the model in a directory."""
    if not (directory / MODULES).is_file():
        return SentenceRecipe(AutoPooling(("mean",), hidden_size, hidden_size))
    try:
        modules = _read_modules(directory)
        transformer = _transformer_config(directory)
        pooling = _read_pooling(directory, modules, hidden_size, device)
    except ModelLoadError as error:
        return SentenceRecipe(None, str(error))
    kinds = [kind for kind, _ in modules[2:]]
    return SentenceRecipe(
        pooling,
        max_length=transformer.get("max_seq_length"),
        lower_case=transformer.get("do_lower_case") is True,
        steps=", ".join([f"{' and '.join(pooling.modes)} pooling of the last layer", *kinds]),
    )


def _read_modules(directory: Path) -> list[tuple[str, Path]]:
    """Return the kind and the folder of each module."""
    try:
        entries = json.loads((directory / MODULES).read_bytes())
        modules = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{MODULES}: expected modules, each with type and path") from error
    known = []
    for name, place in modules:
        package, _, kind = name.rpartition(".")
        if package.partition(".")[0] != "sentence_transformers" or kind not in _KINDS:
            raise ModelLoadError(
                f"{MODULES} names the module {name}: known are {', '.join(_KINDS)}"
            )
        folder = (directory / place).resolve()
        # a module must not lead out of the model's directory
        if not folder.is_relative_to(directory.resolve()):
            raise ModelLoadError(f"{MODULES}: path={place!r} is not inside {directory}")
        known.append((kind, folder))
    return known


def _read_pooling(
    directory: Path, modules: list[tuple[str, Path]], hidden_size: int, device: torch.device
) -> AutoPooling:
    kinds = [kind for kind, _ in modules]
    is_known = kinds[:2] == ["Transformer", "Pooling"] and set(kinds[2:]) <= {"Dense", "Normalize"}
    if not is_known or modules[0][1] != directory.resolve():
        raise ModelLoadError(
            f"{MODULES} has {', '.join(kinds) or 'nothing'}: expected a Transformer "
            "in the directory itself, a Pooling, then any number of Dense and Normalize"
        )
    modes = _pooling_modes(modules[1][1])
    size = hidden_size * len(modes)
    steps: list[Step] = []
    for kind, folder in modules[2:]:
        if kind == "Dense":
            step, size = _read_dense(folder, size, device)
        else:
            step = _read_normalize(folder)
        steps.append(step)
    dims = _optional_json(directory / "config_sentence_transformers.json").get("truncate_dim")
    if type(dims) is int and 0 < dims < size:
        steps.append(lambda vectors: vectors[:, :dims])
        size = dims
    return AutoPooling(modes, hidden_size, size, tuple(steps))


def _pooling_modes(folder: Path) -> tuple[str, ...]:
    config = read_json(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    names = tuple(map(str, modes if isinstance(modes, list) else [modes]))
    if not names or not SENTENCE_POOLINGS.keys() >= set(names):
        raise ModelLoadError(
            f"{folder.name}: pooling_mode={modes!r}: known are {', '.join(SENTENCE_POOLINGS)}"
        )
    return names


def _read_dense(folder: Path, size: int, device: torch.device) -> tuple[Step, int]:
    config = read_json(folder / "config.json")
    _check_names(folder, config)
    sizes = config.get("in_features"), config.get("out_features")
    if sizes[0] != size or type(sizes[1]) is not int:
        raise ModelLoadError(
            f"{folder.name} takes {sizes[0]} and gives {sizes[1]} dimensions: "
            f"what comes before it has {size}"
        )
    shape = (sizes[1], size)
    weights = Checkpoint(folder.name, folder).read_weights()
    bias = None
    if config.get("bias", True):
        bias = take(weights, "linear.bias", shape[:1]).to(device).float()
    weight = take(weights, "linear.weight", shape).to(device).float()
    dense = Dense(weight, bias, _activation(folder, config))
    if not config.get("use_residual"):
        return dense, shape[0]
    projection = None
    if shape[0] != size:
        projection = take(weights, "residual.weight", shape).to(device).float()
    return Residual(dense, projection), shape[0]


def _activation(folder: Path, config: Mapping[str, Any]) -> Activation:
    name = str(config.get("activation_function", "torch.nn.Tanh"))
    kind = name.rpartition(".")[2]
    if not name.startswith("torch.nn.") or kind not in _ACTIVATIONS:
        raise ModelLoadError(
            f"{folder.name}: activation_function={name!r}: known are those of torch.nn "
            f"named {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[kind]


def _read_normalize(folder: Path) -> Step:
    # its folder is empty, or not there at all, where nothing is out of the ordinary
    _check_names(folder, _optional_json(folder / "config.json"))
    return lambda vectors: F.normalize(vectors, dim=1)


def _check_names(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError for a module that works on anything but the rows' vectors."""
    for name in ("module_input_name", "module_output_name"):
        value = config.get(name)
        if value not in (None, "sentence_embedding"):
            raise ModelLoadError(f"{folder.name}: {name}={value!r}: expected sentence_embedding")


def _transformer_config(directory: Path) -> dict[str, Any]:
    """Return what the Transformer's own file says; it is named after a model's kind."""
    for path in sorted(directory.glob("sentence_*_config.json")):
        config = read_json(path)
        task = config.get("transformer_task", "feature-extraction")
        if task != "feature-extraction":
            raise ModelLoadError(f"{path.name}: transformer_task={task!r} is not known")
        length = config.get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            raise ModelLoadError(f"{path.name}: max_seq_length={length!r}: expected an int")
        return config
    return {}


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
