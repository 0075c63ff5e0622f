"""What client, broker and worker cost by themselves: the fake model computes next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from bert_serving.client import AsyncBertClient, BertClient

from .bare_loop import DIM, bare_loop
from .rounds import Contestants, medians, rate, served, show

AT_ONCE = 64
CALL_ROWS, MESSAGE_ROWS = 20_000, 256
BARE, SINGLES, BULK = "bare loop", "single sentences, 64 at once", "one client, 20,000 rows a call"


def compare_path() -> None:
    """Print rates of the server and of the bare loop."""
    with paths(20_000, 100_000) as (singles, bulk):
        show("One sentence a request", medians(singles), BARE, "requests/s")
        show("Bulk", medians(bulk), BARE, "rows/s")


@contextmanager
def paths(requests: int, rows: int) -> Iterator[tuple[Contestants, Contestants]]:
    """Give the contestants in single sentences and in bulk, with so many a round."""
    texts = [f"sentence {i} of some thirteen tokens or so, like most" for i in range(rows)]
    parts = [texts[i : i + CALL_ROWS] for i in range(0, rows, CALL_ROWS)]
    few = texts[:requests]
    with served(model_dir=f"fake:{DIM}") as port, BertClient(port=port) as bc:
        yield (
            {
                BARE: lambda: bare_loop(1, requests),
                SINGLES: lambda: rate(len(few), lambda: asyncio.run(_singles(port, few))),
            },
            {
                BARE: lambda: MESSAGE_ROWS * bare_loop(MESSAGE_ROWS, rows // 50),
                BULK: lambda: rate(rows, lambda: [len(bc.encode(part)) for part in parts]),
            },
        )


async def _singles(port: int, texts: list[str]) -> None:
    async with AsyncBertClient(port=port) as bc:

        async def some(first: int) -> None:
            for text in texts[first::AT_ONCE]:
                await bc.encode(text)

        await asyncio.gather(*(some(first) for first in range(AT_ONCE)))
