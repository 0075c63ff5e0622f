"""The server's status in the words of bert-as-service, for SHOW_CONFIG and SHOW_STATUS: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEGACY_VERSION = "1.10.0"
"""What a client of bert-as-service compares its own version with."""

POOLING_NUMBERS = {
    "none": 0,
    "max": 1,
    "mean": 2,
    "mean_max": 3,
    "first": 4,
    "last": 5,
    "pooler": 6,
}
"""bert-as-service sent the numbers of its enumeration; what it did not have keeps its name."""


def legacy_settings(
    status: Mapping[str, Any],
    *,
    client: str,
    ports: tuple[int, int],
    native_port: int,
    statistic: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what an old client is told of the server: all that ours are, and the old names.

    Args:
        status: the broker's.
        client: who asks.
        ports: where old clients send and receive.
        native_port: where ours do.
        statistic: the requests of old clients, for SHOW_STATUS; None for SHOW_CONFIG.

    """
    pooling = status["pooling_strategy"]
    settings = {
        **status,
        "client": client,
        "server_version": LEGACY_VERSION,
        "native_version": status["server_version"],
        "port": ports[0],
        "port_out": ports[1],
        "native_port": native_port,
        "pooling_strategy": POOLING_NUMBERS.get(pooling, pooling),
        "do_lower_case": not status["cased_tokenization"],
        "xla": status["compile"],
        "num_process": len(status["workers"]),
        "device_map": [worker["device"] for worker in status["workers"]],
    }
    native_statistic = settings.pop("statistic")
    if statistic is not None:
        settings["statistic"] = {**native_statistic, **statistic}
    return settings
