"""Which device, cores and threads each worker gets. Knows the machine, nothing of models."""

from __future__ import annotations

import glob
import os
import platform
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from .cgroups import Cgroups
from .config import ServerConfig

_GPU_NAME = re.compile(r"\d+|(GPU|MIG)-.+")


@dataclass(frozen=True)
class Placement:
    """Where one worker computes: a device as torch names it, and its share of the CPU."""

    device: str
    num_threads: int
    cores: tuple[int, ...]


class PlacementError(Exception):
    """The options ask for devices that cannot be given; the message says why."""


def place_workers(config: ServerConfig) -> list[Placement]:
    """Return a placement for each worker.

    On a GPU machine one worker a GPU (or as `-device_map` and `-num_worker` say); on a
    CPU, workers share the cores in equal, neighbouring groups. Where the group of this process
    has less time than its cores, a container with a limit, there are threads for that time
    only, and the system chooses their cores: those of others may have the same limit.

    Raises:
        PlacementError: GPUs are asked for together with `-cpu`, or there are none.

    """
    if config.device_map and config.cpu:
        raise PlacementError("-device_map names GPUs, -cpu forbids them: give one of the two")
    gpus = [] if config.cpu else visible_gpus()
    missing = [str(gpu) for gpu in config.device_map if gpu not in gpus]
    if missing:
        raise PlacementError(
            f"-device_map {' '.join(missing)}: no such GPU, "
            + (f"visible are {' '.join(map(str, gpus))}" if gpus else "none is visible")
        )
    gpus = list(config.device_map) or gpus
    num_cores = num_usable_cores()
    cores = own_cores()
    if num_cores < len(cores):
        cores = []
    num_worker = config.num_worker or max(len(gpus), 1)
    placements = []
    for number in range(num_worker):
        share = _share(cores, number, num_worker)
        threads = config.num_threads or max(len(share) or num_cores // num_worker, 1)
        device = f"cuda:{gpus[number % len(gpus)]}" if gpus else "cpu"
        placements.append(Placement(device, threads, tuple(share)))
    return placements


def own_cores() -> list[int]:
    """Return the CPU cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def num_usable_cores() -> int:
    """Return how many cores there is time for: those allowed, or a container's limit if less."""
    allowed = len(own_cores()) or os.cpu_count() or 1
    quota = Cgroups().cpu_quota()
    return allowed if quota is None else min(allowed, max(int(quota), 1))


def is_for_cpu(config: ServerConfig) -> bool:
    """Return whether the workers compute on a CPU."""
    return config.cpu or not (config.device_map or visible_gpus())


def visible_gpus() -> list[int]:
    """Return the numbers of the GPUs this process may use, without loading torch or CUDA.

    In CUDA_VISIBLE_DEVICES, CUDA passes over what follows the first word that names no GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = takewhile(_GPU_NAME.fullmatch, map(str.strip, visible.split(",")))
        return list(range(len(list(names))))
    return list(range(len(glob.glob("/dev/nvidia[0-9]*"))))  # noqa: PTH207  # no folder to be in


def processor_name() -> str:
    """Return what the CPU calls itself, exactly enough to know that measurements are its own."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("cpu family", "model", "model name")
    values = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return " ".join(values.get(name, "") for name in wanted)


def _share(cores: list[int], number: int, num_worker: int) -> list[int]:
    if num_worker > len(cores):  # more workers than cores: nothing is gained by pinning
        return []
    return cores[len(cores) * number // num_worker : len(cores) * (number + 1) // num_worker]
