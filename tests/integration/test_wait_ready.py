"""Waiting for a server that is away: as long as was asked for, and no longer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from server_process import SECOND, ServerProcess, Starter

from bert_serving.client import AsyncBertClient, BertClient
from bert_serving.client.errors import RequestTimeout

LONG_MS = 20_000 * SECOND
KINDS = pytest.mark.parametrize("kind", ["blocking", "asyncio"])
KNOWN = pytest.mark.parametrize("is_known", [False, True], ids=["unknown", "known"])


class Waiting:
    """A client of some kind, whose own time-outs are of no use here."""

    def __init__(self, kind: str, server: ServerProcess) -> None:
        self.options: Any = {"port": server.port, "timeout": LONG_MS}
        self.is_blocking = kind == "blocking"

    async def __aenter__(self) -> Waiting:
        self.client: Any = (
            BertClient(**self.options, connect_timeout=200 * SECOND, ignore_all_checks=True)
            if self.is_blocking
            else AsyncBertClient(**self.options, connect_timeout=200 * SECOND)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.is_blocking:
            self.client.close()
        else:
            await self.client.close()

    async def wait_ready(self, timeout: float) -> None:
        if self.is_blocking:
            await asyncio.to_thread(self.client.wait_ready, timeout)
        else:
            await self.client.wait_ready(timeout)


@KINDS
@KNOWN
def test_a_server_that_is_away_is_waited_for(
    start_server: Starter, kind: str, is_known: bool
) -> None:
    server = start_server()

    async def calls() -> None:
        async with Waiting(kind, server) as waiting:
            if is_known:
                await waiting.wait_ready(LONG_MS)
            server.kill_all()
            found = asyncio.create_task(waiting.wait_ready(LONG_MS))
            await asyncio.to_thread(start_server, port=server.port)
            await found

    asyncio.run(calls())


@KINDS
@KNOWN
def test_a_server_that_stays_away_is_not_waited_for_longer_than_asked(
    start_server: Starter, kind: str, is_known: bool
) -> None:
    server = start_server()

    async def calls() -> None:
        async with Waiting(kind, server) as waiting:
            if is_known:
                await waiting.wait_ready(LONG_MS)
            (broker,) = server.processes("server.broker")
            os.kill(broker, signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(RequestTimeout, match="was not ready within 500 ms"):
                await waiting.wait_ready(500)
            assert 0.5 <= time.monotonic() - started < 4 * SECOND  # with a look at what is there
            os.kill(broker, signal.SIGCONT)
            await waiting.wait_ready(LONG_MS)

    asyncio.run(calls())
