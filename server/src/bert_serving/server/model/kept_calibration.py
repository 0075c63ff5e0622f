"""Calibrations, kept in the user's cache: the next start of the same model need not measure.

One is kept for each model (its configuration, not its weights), data type, machine, share of
it, and version of what computes. A file that cannot be read or written is as none at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bert_serving.server.devices import processor_name
from bert_serving.server.version import __version__

from .cache import cache_folder, digest, keep, read_kept
from .calibration import Calibration
from .compiled import load_compiled

logger = logging.getLogger(__name__)

_TOO_MANY_TOKENS = 1 << 31


def calibration_path(settings: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Path:
    """Return where the calibration of a model on this machine is kept.

    Args:
        settings: the model's `config.json`.
        dtype: what it computes in.
        device: where.

    """
    key = [settings, str(dtype), device.type, machine_key(device), __version__]
    return cache_folder() / f"calibration-{digest(key)}.json"


def machine_key(device: torch.device) -> list[str]:
    """Return what a rate on a device depends on, beside the model and its type."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.__version__]
    compiled = load_compiled()
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    return [processor_name(), threads, torch.__version__, compiled.build if compiled else ""]


def read_calibration(path: Path, *, level: int = logging.WARNING) -> Calibration | None:
    """Return the calibration that is kept there; None if there is none.

    Args:
        path: of the file.
        level: of the line in the log that says that the file has none.

    """
    try:
        kept = read_kept(path)
        return None if kept is None else _parse(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        logger.log(level, "%s: no calibration in it: measuring again (%s)", path, error)
        return None


def _parse(kept: Mapping[str, Any]) -> Calibration:
    rates = {int(budget): float(rate) for budget, rate in kept["tokens_per_s"].items()}
    max_batch_tokens, share = int(kept["max_batch_tokens"]), kept["share"]
    if not 1 <= max_batch_tokens < _TOO_MANY_TOKENS:
        raise ValueError(f"max_batch_tokens={max_batch_tokens}")
    return Calibration(max_batch_tokens, rates, None if share is None else float(share))


def keep_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration: whole, or not at all."""
    keep(path, asdict(calibration))
