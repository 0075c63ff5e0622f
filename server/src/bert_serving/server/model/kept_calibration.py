"""Calibrations, kept in the user's cache: the next start of the same model need not measure.

One is kept for each model (its configuration, not its weights), data type, machine, share of
it, and version of what computes. A file that cannot be read or written is as none at all.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bert_serving.server.version import __version__

from .cache import cache_folder, digest
from .calibration import Calibration

logger = logging.getLogger(__name__)


def calibration_path(settings: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Path:
    """Return where the calibration of a model on this machine is kept.

    Args:
        settings: the model's `config.json`.
        dtype: what it computes in.
        device: where.

    """
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{_processor()}, {torch.get_num_threads()} threads of {os.cpu_count()}"
    key = [settings, str(dtype), device.type, machine, torch.__version__, __version__]
    return cache_folder() / f"calibration-{digest(key)}.json"


def read_calibration(path: Path) -> Calibration | None:
    """Return the calibration that is kept there; None if there is none."""
    try:
        kept = json.loads(path.read_bytes())
        rates = {int(budget): float(rate) for budget, rate in kept["tokens_per_s"].items()}
        return Calibration(int(kept["max_batch_tokens"]), rates, kept["share"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: no calibration in it: measuring again (%s)", path, error)
        return None


def keep_calibration(path: Path, calibration: Calibration) -> None:
    """Keep a calibration: whole, or not at all."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(calibration)), "utf-8")
        partial.replace(path)
    except OSError as error:
        logger.info("the calibration is not kept: %s: %s", path, error.strerror or error)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("cpu family", "model", "model name")
    values = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return " ".join(values.get(name, "") for name in wanted)
