"""Values on their way from a device to the outputs that they belong to.

A GPU computes while its caller goes on to the next micro-batch; so results are copied when
they are there, into pinned memory, and are waited for once a batch. On a CPU they are
there already. It knows nothing of what the values are.
"""

from __future__ import annotations

import torch

from .device import wait_for
from .outputs import Output
from .packing import MicroBatch

# pinned memory is the system's to lose: no more than this waits at a time
_MOST_BYTES = 256 << 20


class Arrivals:
    """Values that are still to be put into outputs.

    Args:
        device: where they are computed.

    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values: list[tuple[Output, MicroBatch, torch.Tensor]] = []
        self._bytes = 0

    def add(self, output: Output, batch: MicroBatch, values: torch.Tensor) -> None:
        """Take a micro-batch's values for an output, in the micro-batch's order."""
        if self._device.type == "cpu":
            output.put(batch, values.numpy())
            return
        # torch makes the copy in pinned memory, as it need not be there at once
        self._values.append((output, batch, values.to("cpu", non_blocking=True)))
        self._bytes += values.nbytes
        if self._bytes > _MOST_BYTES:
            self.collect()

    def collect(self) -> None:
        """Wait for the values that are on their way, and put them where they belong."""
        if self._values:
            wait_for(self._device)
        for output, batch, values in self._values:
            output.put(batch, values.numpy())
        self._values.clear()
        self._bytes = 0
