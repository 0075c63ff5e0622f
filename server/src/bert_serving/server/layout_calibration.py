"""Measuring how many workers a CPU is best shared by, once for a model on a machine.

Each layout is tried with the models of real workers, all at once: what they take from each
other, caches and memory bandwidth, is what there is to find out. Two layouts are tried in turns,
so that whoever else uses the machine spoils both alike: of two that are about equal, one after the
other, the wrong one was chosen.
"""

from __future__ import annotations

import importlib.metadata
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from .bare_model import BareModel, BareModelError, bare_model
from .cgroups import Cgroups
from .config import ServerConfig
from .control import NOWHERE
from .devices import is_for_cpu, num_usable_cores, place_workers, processor_name
from .layouts import Layout, LayoutCalibration, calibrate_layout, layouts
from .model.cache import cache_folder, digest, keep, read_kept
from .roles import worker_config
from .version import __version__

log = logging.getLogger("bert_serving.layouts")

ROUNDS = 5  # in each of which every layout has a turn; medians count
MEASURE_S = 0.5
MEASURED_TOKENS = 1024  # at a time, where that is not chosen: near the best for any share of cores
MEMORY_SHARE = 0.5  # of what is available, which all workers together may take
_DECISIVE = ("model_dir", "tuned_model_dir", "dtype", "fp16", "compile", "max_seq_len")
_MADE_FOR_TESTS = "fake:"
_NATIVE = Path(__file__).parent / "model" / "native"


def with_num_worker(config: ServerConfig) -> ServerConfig:
    """Return the options with the number of workers that computes the most.

    Where it was asked for, or there is nothing to choose (GPUs, one core), they stay as they
    are. So they do if the model cannot be loaded: its worker will say why.
    """
    candidates = layouts(num_usable_cores())
    is_chosen = config.num_worker is not None or config.num_threads is not None
    is_fake = (config.model_dir or "").startswith(_MADE_FOR_TESTS)
    if is_chosen or is_fake or len(candidates) == 1 or not is_for_cpu(config):
        return config
    path = _path(config, candidates[0].num_threads)
    calibration = read_layout(path)
    if calibration is not None:
        log.info("calibrated before: %s; remove %s to measure again", calibration, path)
    else:
        log.info("measuring how many workers are best: this takes some seconds, once")
        calibration = calibrate_layout(candidates, _Measurement(config))
        if calibration is None:
            return config
        log.info("calibrated: %s; kept in %s", calibration, path)
        keep(path, asdict(calibration))
    return replace(config, num_worker=calibration.num_worker)


class _Measurement:
    """Layouts tried with the model of some options."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._memory_kib = 0  # of one worker

    def __call__(self, layouts: Sequence[Layout]) -> list[float]:
        """Return how many tokens a second all workers of each compute together.

        Those are left out for which there is no memory, or that cannot be loaded.
        """
        with ExitStack() as processes:
            try:
                loaded = list(self._load(layouts, processes))
                rounds = [[_rate(models) for models in loaded] for _ in range(ROUNDS)]
            except BareModelError as error:
                log.info("it could not be measured: %s", error)
                return []
        return [statistics.median(rates) for rates in zip(*rounds, strict=True)]

    def _load(
        self, layouts: Sequence[Layout], processes: ExitStack
    ) -> Iterator[Sequence[BareModel]]:
        """Load the models of layouts, as long as there is memory."""
        tokens = self._config.max_batch_tokens or MEASURED_TOKENS  # or each would calibrate
        for layout in layouts:
            if self._memory_kib * layout.num_worker > MEMORY_SHARE * _available_kib():
                return
            config = replace(self._config, num_worker=layout.num_worker, max_batch_tokens=tokens)
            models = [
                processes.enter_context(
                    bare_model(worker_config(config, NOWHERE, number, placement), quiet=True)
                )
                for number, placement in enumerate(place_workers(config))
            ]
            for model in models:
                model.wait_loaded()
            self._memory_kib = self._memory_kib or _memory_kib(models[0].pid)
            yield models


def _rate(models: Sequence[BareModel]) -> float:
    """Return how many tokens a second models compute together, all at once."""
    for model in models:
        model.start_computing(MEASURE_S)
    return sum(model.tokens_per_s(MEASURE_S) for model in models)


def _path(config: ServerConfig, num_cores: int) -> Path:
    """Return where a model's calibration on this machine is kept."""
    settings = asdict(config)
    decisive = [settings[name] for name in _DECISIVE]
    torch = importlib.metadata.version("torch")
    kernels = [sha256(file.read_bytes()).hexdigest() for file in sorted(_NATIVE.glob("*.so"))]
    memory = Cgroups().memory()  # in a smaller container, fewer workers have room
    limit = memory and memory.limit_bytes
    machine = [processor_name(), num_cores, limit, torch, __version__, kernels]
    key = [decisive, _model_file(config), *machine]
    return cache_folder() / f"layout-{digest(key)}.json"


def _model_file(config: ServerConfig) -> str:
    """Return the model's own configuration, if it is a directory: its name may mean another."""
    try:
        return (Path(config.model_dir or "") / "config.json").read_text("utf-8")
    except (OSError, ValueError):
        return ""


def read_layout(path: Path) -> LayoutCalibration | None:
    """Return the calibration that is kept there; None if there is none."""
    try:
        kept: Any = read_kept(path)
        if kept is None:
            return None
        rates = {int(number): float(rate) for number, rate in kept["tokens_per_s"].items()}
        if kept["num_worker"] not in rates:
            raise ValueError("it chose what it had not measured")
        return LayoutCalibration(kept["num_worker"], rates)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: no calibration in it: measuring again (%s)", path, error)
        return None


def _available_kib() -> int:
    """Return what the machine can still give, or this process's group of it if that is less."""
    available = _kib(Path("/proc/meminfo"), "MemAvailable")
    memory = Cgroups().memory()
    return available if memory is None else min(available, memory.left_bytes >> 10)


def _memory_kib(pid: int) -> int:
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _kib(file: Path, name: str) -> int:
    """Return a figure of the kernel's, in KiB."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"{file} has no {name}")
