"""A network that is cut in the middle of a large call, without a word to anybody."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from namespaces import Neighbour, neighbour
from server_process import SECOND, ServerProcess, Starter, eventually

ROWS = 100_000
CLIENT = """
import asyncio, json, sys, time
import numpy as np
from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.server.model.fake import fake_embedding

kind, told = sys.argv[1], json.loads(sys.argv[2])
rows = [f"row {number}" for number in range(told.pop("rows"))]

async def encoded():
    async with AsyncBertClient(**told) as client:
        return await client.encode(rows), await client.encode("still there?")

try:
    if kind == "asyncio":
        vectors, after = asyncio.run(encoded())
    else:
        with BertClient(**told) as client:
            vectors, after = client.encode(rows), client.encode("still there?")
    right = all(np.array_equal(v, fake_embedding(r, 384)) for v, r in zip(vectors, rows))
    right = right and np.array_equal(after, fake_embedding("still there?", 384))
    print(json.dumps({"rows": len(vectors), "right": right}))
except Exception as error:
    print(json.dumps({"error": type(error).__name__}))
"""


@pytest.fixture
def other() -> Iterator[Neighbour]:
    with neighbour() as other:
        yield other


@pytest.fixture
def server(other: Neighbour, start_server: Starter) -> ServerProcess:
    model = ("-model_dir", "fake:384?row_us=50")  # 5 s for all rows
    return start_server(*model, "-host", "0.0.0.0", "-allow_insecure")


def encode_until_cut(
    other: Neighbour, server: ServerProcess, kind: str, **options: Any
) -> subprocess.Popen[str]:
    """Start a call on the other machine, and cut the network in its middle."""
    told = {"ip": other.here, "port": server.port, "rows": ROWS, **options}
    client = other.start(sys.executable, "-c", CLIENT, kind, json.dumps(told))
    eventually(lambda: server.status()["statistic"]["num_delivered"] > 100, 20 * SECOND)
    other.cut()
    return client


def said(client: subprocess.Popen[str], within: float) -> dict[str, Any]:
    output, _ = client.communicate(timeout=within)
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_call_outlives_a_cut_of_five_seconds(
    other: Neighbour, server: ServerProcess, kind: str
) -> None:
    client = encode_until_cut(other, server, kind, timeout=30_000 * SECOND)
    assert client.poll() is None
    time.sleep(5)  # what is tested
    other.restore()
    assert said(client, 60 * SECOND) == {"rows": ROWS, "right": True}


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_network_that_stays_cut_ends_the_call_at_its_deadline(
    other: Neighbour, server: ServerProcess, kind: str
) -> None:
    client = encode_until_cut(other, server, kind, timeout=4_000 * SECOND)
    started = time.monotonic()
    assert said(client, 20 * SECOND) == {"error": "RequestTimeout"}
    assert time.monotonic() - started < 7 * SECOND
    with server.client() as near:
        assert len(near.encode("do you still answer?")) == 384
