"""A connection that is lost and made anew while its client goes on to use it."""

from __future__ import annotations

import asyncio

import numpy as np
from relay import relay
from server_process import SECOND, ServerProcess, Starter, eventually

from bert_serving.client import AsyncBertClient
from bert_serving.server.model.fake import fake_embedding

DIM = 384
SLOW = "fake:sleep 1"


def is_computing(server: ServerProcess) -> bool:
    return bool(server.status()["statistic"]["requests_in_hand"])


def test_what_was_lost_with_a_connection_is_sent_again_though_others_are_answered(
    start_server: Starter,
) -> None:
    server = start_server("-num_worker", "2")

    async def calls(port: int) -> None:
        async with AsyncBertClient("127.0.0.1", port, timeout=20_000 * SECOND) as client:
            lost = asyncio.create_task(client.encode(SLOW))
            await asyncio.to_thread(eventually, lambda: is_computing(server))
            between.cut()
            async with asyncio.timeout(10 * SECOND):
                while not lost.done():
                    assert np.array_equal(
                        await client.encode("quick"), fake_embedding("quick", DIM)
                    )
                    await asyncio.sleep(0.05)
            assert np.array_equal(await lost, fake_embedding(SLOW, DIM))

    with relay(server.port) as between:
        asyncio.run(calls(between.port))
