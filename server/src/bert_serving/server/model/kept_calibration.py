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


def read_calibration(path: Path) -> Calibration | None:
    """Return the calibration that is kept there; None if there is none."""
    try:
        kept = read_kept(path)
        if kept is None:
            return None
        rates = {int(budget): float(rate) for budget, rate in kept["tokens_per_s"].items()}
        return Calibration(int(kept["max_batch_tokens"]), rates, kept["share"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: no calibration in it: measuring again (%s)", path, error)
        return None


def keep_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration: whole, or not at all."""
    keep(path, asdict(calibration))
