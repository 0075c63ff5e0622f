"""The devices to compute on, as the system, the options and torch see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_serving.server.config import ServerConfig
from bert_serving.server.devices import PlacementError, place_workers, visible_gpus

from .finding import Finding, ok, problem, warning

DRIVER = Path("/proc/driver/nvidia/version")
TORCH_ADVICE = "install a torch with CUDA (see pytorch.org), or serve on the CPU with -cpu"


def look_at_devices(config: ServerConfig) -> list[Finding]:
    """Check the devices of all workers."""
    try:
        placements = place_workers(config)
    except PlacementError as error:
        return [problem("devices", str(error), "leave the option out, or name what there is")]
    workers = [placement.device for placement in placements]
    if config.cpu:
        return [judge_cpu(workers, [placement.num_threads for placement in placements])]
    from bert_serving.server.model.inspection import gpus_of_torch  # here: it imports torch

    cuda, names = gpus_of_torch()
    if not visible_gpus() and not names:
        found = [judge_cpu(workers, [placement.num_threads for placement in placements])]
        return [*found, *judge_driver(DRIVER.exists())]
    return [judge_gpus(workers, len(visible_gpus()), cuda, names)]


def judge_cpu(workers: Sequence[str], threads: Sequence[int]) -> Finding:
    """Return what workers on a CPU compute with."""
    each = ", ".join(map(str, threads))
    return ok("devices", f"CPU: {len(workers)} worker(s), of {each} thread(s)")


def judge_driver(is_there: bool) -> list[Finding]:
    """Return a warning where there is a driver for GPUs, but none to be seen."""
    if not is_there:
        return []
    advice = "give the container its GPUs (--gpus all), or see what CUDA_VISIBLE_DEVICES says"
    return [warning("GPU", "there is a driver, but no GPU is visible", advice)]


def judge_gpus(workers: Sequence[str], visible: int, cuda: str | None, names: Sequence[str]) -> Finding:  # fmt: skip  # noqa: E501
    """Return whether torch finds the GPUs that the system shows.

    Args:
        workers: the device of each.
        visible: GPUs that the system shows this process.
        cuda: what torch was built for; None if for CPUs alone.
        names: of the GPUs that torch finds.

    """
    if cuda is None:
        return problem("devices", f"{visible} GPU(s), but this torch is for CPUs", TORCH_ADVICE)
    if len(names) < visible:
        seen = f"{visible} GPU(s), of which torch (CUDA {cuda}) finds {len(names)}"
        return problem("devices", seen, "see nvidia-smi: the driver may be too old for that CUDA")
    return ok("devices", f"{', '.join(names)} (CUDA {cuda}); workers on {', '.join(workers)}")
