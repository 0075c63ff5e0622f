"""What the numbers were measured on: machine, versions, and the best it could do."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bert_serving.server import exit_codes
from bert_serving.server.interpreter import module_command

PACKAGES = (
    *("bert-serving-server", "bert-serving-client"),
    *("torch", "transformers", "tokenizers", "numpy", "pyzmq"),
)
LIMIT_S = 120.0
POLL_S = 0.05


@dataclass(frozen=True)
class Machine:
    """The machine: its processor, the cores that may be used, its memory, its system."""

    processor: str
    cores: int
    memory_gb: float | None
    system: str

    @classmethod
    def this(cls) -> Machine:
        """Return this one."""
        return cls(_processor(), num_cores(), _memory_gb(), platform.platform(terse=True))

    def __str__(self) -> str:
        """Return it in words."""
        memory = f", {self.memory_gb:.1f} GB" if self.memory_gb is not None else ""
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{self.processor}, {cores}{memory}, {self.system}"


@dataclass(frozen=True)
class MatrixProduct:
    """The best matrix product in a type on a device.

    Attributes:
        dtype, device: which.
        gflops: the rate of all devices together; None if it could not be measured.
        reason: why it could not.
        device_name: what the device calls itself, if it does.

    """

    dtype: str
    device: str
    gflops: float | None = None
    reason: str = ""
    device_name: str = ""

    def __str__(self) -> str:
        """Return it in words."""
        if self.gflops is None:
            return f"best matrix product not measured: {self.reason}"
        return f"best matrix product {self.gflops:,.0f} GFLOP/s"


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def best_matrix_product(
    dtype: str, device: str, num_devices: int, check: Callable[[], None]
) -> MatrixProduct:
    """Measure the best matrix product, in a process that may load torch.

    Args:
        dtype: to multiply in.
        device: the first one that the server uses; its others are taken to be the same.
        num_devices: how many it uses; all the cores of a machine are one.
        check: called often; what it raises ends it.

    """
    command = module_command("bert_serving.server.model.machine", dtype, device)
    process = subprocess.Popen(  # noqa: S603  # our own module
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            check()
            time.sleep(POLL_S)
        if process.poll() is None:
            return MatrixProduct(dtype, device, reason=f"it took more than {LIMIT_S:.0f} s")
        assert process.stdout is not None
        text = process.stdout.read()
    finally:
        process.kill()
        process.communicate()
    if process.returncode != exit_codes.OK:
        reason = f"its process {exit_codes.describe(process.returncode)}"
        return MatrixProduct(dtype, device, reason=reason)
    answer = json.loads(text)
    if "error" in answer:
        return MatrixProduct(dtype, device, reason=answer["error"])
    return MatrixProduct(dtype, device, answer["gflops"] * num_devices, device_name=answer["name"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        return None
