"""Which ports a server is to listen on, and whether they go together."""

from __future__ import annotations

from typing import Any

import pytest

from bert_serving.server.config import ServerConfig
from bert_serving.server.listening_ports import contradiction, legacy_port_out, listening_ports


def ports(**options: Any) -> dict[str, int]:
    return listening_ports(ServerConfig(**options))


def test_every_port_with_a_number_is_one() -> None:
    assert ports() == {"port": 5555}
    assert ports(port=0, backend_port=0, legacy_port=0) == {}
    assert ports(port=1, backend_port=2, legacy_port=3) == {
        "port": 1,
        "backend_port": 2,
        "legacy_port": 3,
        "legacy_port_out": 4,
    }


def test_results_come_from_the_port_after_the_one_for_requests_unless_another_is_given() -> None:
    assert legacy_port_out(ServerConfig(legacy_port=5)) == 6
    assert legacy_port_out(ServerConfig(legacy_port=5, legacy_port_out=9)) == 9
    assert legacy_port_out(ServerConfig(legacy_port=5, legacy_port_out=0)) == 0
    assert legacy_port_out(ServerConfig(legacy_port=0)) == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"port": 5556, "legacy_port": 5555}, "-port and -legacy_port_out are both 5556"),
        ({"port": 7, "backend_port": 7}, "-port and -backend_port are both 7"),
        ({"legacy_port": 65535}, "-legacy_port_out 65536 is above 65535"),
        ({"legacy_port": 65535, "legacy_port_out": 0}, None),
        ({"port": 0, "backend_port": 0, "legacy_port": 0}, None),
        ({"port": 1, "backend_port": 2, "legacy_port": 3}, None),
    ],
)
def test_no_two_ports_are_the_same_and_none_is_too_high(
    options: dict[str, Any], why: str | None
) -> None:
    assert contradiction(ports(**options)) == why
