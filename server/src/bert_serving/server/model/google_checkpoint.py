"""Google's BERT checkpoints: finding their files, and writing them as a Hugging Face directory.

It knows both layouts, names and configurations, and leaves the reading of TensorFlow's
format to `tensorflow_reader`. What is served is always the directory written:
`conversions` keeps one for each checkpoint, `bert-serving-convert` writes one anywhere.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .checkpoint import SAFETENSORS, read_json
from .replica import ModelLoadError
from .tensorflow_reader import Variable, read_variables

CKPT_NAME, CONFIG_NAME, VOCAB_NAME = "bert_model.ckpt", "bert_config.json", "vocab.txt"
CONVERTED_FILES = ("config.json", SAFETENSORS, "tokenizer_config.json", VOCAB_NAME)

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)
_LAYER_NORM_EPS = 1e-12  # written in Google's code, not in its configuration


@dataclass(frozen=True)
class GoogleCheckpoint:
    """The files of one of Google's checkpoints.

    Attributes:
        prefix: the path of the weights' files up to `.index` and `.data-…`.
        config_path: its `bert_config.json`.
        vocab_path: its `vocab.txt`.

    """

    prefix: Path
    config_path: Path
    vocab_path: Path

    @property
    def files(self) -> list[Path]:
        """Everything that a conversion reads."""
        data = sorted(self.prefix.parent.glob(f"{_literal(self.prefix.name)}.data-*"))
        return [_index(self.prefix), *data, self.config_path, self.vocab_path]

    def read_config(self) -> dict[str, Any]:
        """Return the configuration as a `config.json` has it, without any head.

        Raises:
            ModelLoadError: no such file, or not a BERT's configuration.

        """
        config = read_json(self.config_path)
        for name in _SIZES:
            value = config.get(name)
            if type(value) is not int or value < 1:
                raise ModelLoadError(
                    f"{self.config_path}: {name}={value!r}: expected an int above 0"
                )
        return {**config, "model_type": "bert", "layer_norm_eps": _LAYER_NORM_EPS}

    def convert(self, out: Path, *, lower_case: bool) -> None:
        """Write a Hugging Face directory, all of it or nothing.

        Args:
            out: the directory; one that is there already is replaced.
            lower_case: what its tokenizer is to do unless told otherwise.

        Raises:
            ModelLoadError: files missing or broken, no TensorFlow, or `out` cannot be written.

        """
        config = self.read_config()
        try:
            with _new_directory(out) as folder:
                shutil.copyfile(self.vocab_path, folder / VOCAB_NAME)
                weights = folder / SAFETENSORS
                read_variables(self.prefix, _variables(config), weights)
                weights.chmod((folder / VOCAB_NAME).stat().st_mode)  # safetensors: for its owner
                _write_json(
                    folder / "config.json", {**config, **_head_config(weights, self.prefix)}
                )
                tokenizer = {
                    "tokenizer_class": "BertTokenizer",
                    "do_lower_case": lower_case,
                    "model_max_length": config["max_position_embeddings"],
                }
                _write_json(folder / "tokenizer_config.json", tokenizer)
        except OSError as error:
            raise ModelLoadError(
                f"{error.filename or out}: {error.strerror or error}: not converted"
            ) from None


def is_google_directory(directory: Path, ckpt_name: str, config_name: str) -> bool:
    """Return whether a directory has TensorFlow weights, and no others that go before them."""
    if ckpt_name != CKPT_NAME and _index(directory / ckpt_name).is_file():
        return True
    if any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin")):
        return False
    return any(directory.glob("*.index")) or (directory / config_name).is_file()


def find_google_checkpoint(
    model_dir: Path, weights_dir: Path, ckpt_name: str, config_name: str
) -> GoogleCheckpoint:
    """Return the checkpoint whose vocabulary and configuration are in one directory.

    Args:
        model_dir: has the vocabulary, and the configuration (also as a `config.json`).
        weights_dir: has the weights.
        ckpt_name: the weights' name.
        config_name: the configuration's.

    Raises:
        ModelLoadError: one of them is not there.

    """
    prefix = weights_dir / ckpt_name
    if not _index(prefix).is_file():
        raise ModelLoadError(f"{_index(prefix)}: no such file{_other_names(weights_dir)}")
    config_path = model_dir / config_name
    if not config_path.is_file() and (model_dir / "config.json").is_file():
        config_path = model_dir / "config.json"
    checkpoint = GoogleCheckpoint(prefix, config_path, model_dir / VOCAB_NAME)
    for path in checkpoint.files:
        if not path.is_file():
            raise ModelLoadError(f"{path}: no such file")
    return checkpoint


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _other_names(directory: Path) -> str:
    names = sorted(path.stem for path in directory.glob("*.index"))
    if len(names) == 1:
        return f": did you mean -ckpt_name {names[0]}?"
    return f": give -ckpt_name, one of {', '.join(names)}" if names else ""


def _variables(config: Mapping[str, int]) -> list[Variable]:
    """Return what is read of a checkpoint, under transformers' names."""
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings/word_embeddings": (config["vocab_size"], hidden),
        "embeddings/position_embeddings": (config["max_position_embeddings"], hidden),
        "embeddings/token_type_embeddings": (config["type_vocab_size"], hidden),
        **_layer_norm("embeddings/LayerNorm", hidden),
    }
    for number in range(config["num_hidden_layers"]):
        shapes.update(_layer(f"encoder/layer_{number}", hidden, config["intermediate_size"]))
    shapes.update(_linear("pooler/dense", hidden, hidden))
    variables = [
        Variable(
            f"bert/{name}",
            _target(name),
            shape,
            is_transposed=name.endswith("/kernel"),
            is_optional=name.startswith("pooler/"),
        )
        for name, shape in shapes.items()
    ]
    return [
        *variables,
        Variable("output_weights", "classifier.weight", (None, hidden), is_optional=True),
        Variable("output_bias", "classifier.bias", (None,), is_optional=True),
    ]


def _layer(name: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        **_linear(f"{name}/attention/self/query", hidden, hidden),
        **_linear(f"{name}/attention/self/key", hidden, hidden),
        **_linear(f"{name}/attention/self/value", hidden, hidden),
        **_linear(f"{name}/attention/output/dense", hidden, hidden),
        **_layer_norm(f"{name}/attention/output/LayerNorm", hidden),
        **_linear(f"{name}/intermediate/dense", hidden, inner),
        **_linear(f"{name}/output/dense", inner, hidden),
        **_layer_norm(f"{name}/output/LayerNorm", hidden),
    }


def _linear(name: str, width_in: int, width_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (width_in, width_out), f"{name}/bias": (width_out,)}


def _layer_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/gamma": (width,), f"{name}/beta": (width,)}


def _target(name: str) -> str:
    """Return transformers' name of one of Google's, both from `bert` on."""
    *parents, last = name.split("/")
    endings = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
    last = f"{last}.weight" if last.endswith("_embeddings") else endings.get(last, last)
    return ".".join(["bert", *(part.replace("layer_", "layer.") for part in parents), last])


def _head_config(weights: Path, prefix: Path) -> dict[str, Any]:
    """Return the fields of a `config.json` that say which head a checkpoint's weights have."""
    with safe_open(weights, framework="np") as file:
        rows = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118
    num_labels, biases = rows.get("classifier.weight", 0), rows.get("classifier.bias", 0)
    if num_labels != biases:
        raise ModelLoadError(
            f"{prefix}: output_weights are of {num_labels} labels, output_bias of {biases}"
        )
    if not num_labels:
        return {"architectures": ["BertModel"]}
    labels = {number: f"LABEL_{number}" for number in range(num_labels)}
    return {
        "architectures": ["BertForSequenceClassification"],
        "id2label": labels,
        "label2id": {label: number for number, label in labels.items()},
    }


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """Give a directory to fill, which takes its place at the end, or is gone after an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    folder.mkdir()
    try:
        yield folder
        if out.is_dir() and any(out.iterdir()):  # only an empty one can be renamed over
            aside = folder.with_name(f"{folder.name}-old")
            out.rename(aside)
            folder.rename(out)
            shutil.rmtree(aside)
        else:
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
