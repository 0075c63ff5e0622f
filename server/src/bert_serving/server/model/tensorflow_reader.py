"""Reads the variables of a TensorFlow checkpoint into a safetensors file.

The only module that imports TensorFlow, and it does so in a process of its own that ends
when the file is written: TensorFlow takes seconds and hundreds of megabytes to import,
writes to standard error as it likes, aborts on some broken files, and keeps threads beside
torch's. Nothing of that reaches a worker. It knows nothing of BERT: which variables are
wanted, and under which names, its order says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from bert_serving.server import exit_codes
from bert_serving.server.interpreter import module_command
from bert_serving.server.processes import Parent

from .replica import ModelLoadError

READ_TIMEOUT_S = 1800.0  # a large checkpoint on a slow network disk

_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # or it says that it is on
    "CUDA_VISIBLE_DEVICES": "",  # or it takes all of a GPU's memory
}

_NO_TENSORFLOW = (
    "reading it needs TensorFlow: run pip install 'bert-serving-server[tf]', or run "
    "bert-serving-convert DIR OUT where TensorFlow is installed, and serve OUT"
)


@dataclass(frozen=True)
class Variable:
    """A variable that is wanted of a checkpoint.

    Attributes:
        name: in the checkpoint.
        target: in the file to be written.
        shape: what the checkpoint must have; None in it is any size.
        is_transposed: whether the file gets the transpose.
        is_optional: whether it may be missing.

    """

    name: str
    target: str
    shape: tuple[int | None, ...]
    is_transposed: bool = False
    is_optional: bool = False


def read_variables(prefix: Path, variables: Sequence[Variable], out: Path) -> None:
    """Write the variables of a checkpoint to a safetensors file, as float32.

    Args:
        prefix: the path of the checkpoint's files up to `.index`.
        variables: those wanted; all others are left alone.
        out: the file to write.

    Raises:
        ModelLoadError: no TensorFlow, or a checkpoint that is broken or has not what is
            wanted; the message names it, in one line.

    """
    order = {
        "prefix": str(prefix),
        "variables": [asdict(variable) for variable in variables],
        "out": str(out),
    }
    try:
        run = subprocess.run(  # noqa: S603  # our own module
            module_command(__name__, str(os.getpid())),
            input=json.dumps(order),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=READ_TIMEOUT_S,
            env={**os.environ, **_QUIET},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadError(
            f"{prefix}: TensorFlow has not read it within {READ_TIMEOUT_S:.0f} s"
        ) from None
    if run.returncode == exit_codes.BOOT_FAILED:
        raise ModelLoadError(f"{prefix}: {_last_line(run.stdout)}")
    if run.returncode != exit_codes.OK:
        raise ModelLoadError(
            f"{prefix}: the process that read it {exit_codes.describe(run.returncode)}: "
            f"{_last_line(run.stderr)}"
        )


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300] or "it said nothing"


def main() -> int:
    """Do what the order on standard input says; standard output says why not."""
    Parent().watch()
    order = json.load(sys.stdin)
    variables = [
        Variable(**{**fields, "shape": tuple(fields["shape"])}) for fields in order["variables"]
    ]
    try:
        save_file(_read(order["prefix"], variables), order["out"])
    except (ModelLoadError, OSError) as error:
        print(error)  # noqa: T201  # to the process that gave the order
        return exit_codes.BOOT_FAILED
    return exit_codes.OK


def _read(prefix: str, variables: Sequence[Variable]) -> dict[str, npt.NDArray[np.float32]]:
    try:
        import tensorflow as tf
    except ImportError as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == "tensorflow"
        raise ModelLoadError(
            _NO_TENSORFLOW if is_missing else f"TensorFlow cannot be imported: {_one_line(error)}"
        ) from None
    read = {}
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        for variable in variables:
            if variable.is_optional and variable.name not in shapes:
                continue
            _check(variable, shapes)
            read[variable.target] = _plain_array(reader.get_tensor(variable.name), variable)
    except (tf.errors.OpError, RuntimeError, ValueError, LookupError) as error:
        raise ModelLoadError(f"cannot be read: {_one_line(error)}") from None
    return read


def _check(variable: Variable, shapes: dict[str, list[int]]) -> None:
    if variable.name not in shapes:
        raise ModelLoadError(f"no variable {variable.name} in it")
    shape = shapes[variable.name]
    is_alike = len(shape) == len(variable.shape) and all(
        wanted in (None, size) for size, wanted in zip(shape, variable.shape, strict=True)
    )
    if not is_alike:
        wanted = ", ".join("any" if size is None else str(size) for size in variable.shape)
        raise ModelLoadError(
            f"variable {variable.name} is ({', '.join(map(str, shape))}): "
            f"the configuration asks for ({wanted})"
        )


def _plain_array(tensor: Any, variable: Variable) -> npt.NDArray[np.float32]:
    try:
        array = np.asarray(tensor, np.float32)
    except (TypeError, ValueError):
        raise ModelLoadError(f"variable {variable.name} holds no numbers") from None
    return np.ascontiguousarray(array.T if variable.is_transposed else array)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
