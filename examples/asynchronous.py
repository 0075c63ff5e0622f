"""Keep the server busy while you do something else: three ways.

python examples/asynchronous.py [PORT]
"""

import asyncio
import sys
from collections.abc import Iterator

import numpy as np

from bert_serving.client import AsyncBertClient, BertClient

BATCHES = [[f"sentence {number} of batch {batch}" for number in range(20)] for batch in range(5)]


def in_the_background(bc: BertClient) -> np.ndarray:
    """Send everything first, fetch it later: `encode` returns at once."""
    for batch in BATCHES:
        bc.encode(batch, blocking=False)
    # ... something else is done here, while the server computes
    return bc.fetch_all(concat=True)


def from_a_generator(bc: BertClient) -> np.ndarray:
    """Encode what a generator yields; results come in the order in which they are ready."""

    def read() -> Iterator[list[str]]:
        yield from BATCHES

    results = sorted(bc.encode_async(read(), delay=0), key=lambda response: response.id)
    return np.concatenate([response.embedding for response in results])


async def with_asyncio(port: int) -> np.ndarray:
    """Await many calls at once: they share one connection."""
    async with AsyncBertClient(port=port) as bc:
        return np.concatenate(await asyncio.gather(*(bc.encode(batch) for batch in BATCHES)))


def main(port: int) -> None:
    """Print that all three give the same."""
    with BertClient(port=port) as bc:
        wanted = bc.encode([text for batch in BATCHES for text in batch])
        ways = {"in the background": in_the_background(bc), "generator": from_a_generator(bc)}
    ways["asyncio"] = asyncio.run(with_asyncio(port))
    for name, vectors in ways.items():
        same = np.allclose(vectors, wanted, atol=1e-5)
        print(f"{name:>18}: {vectors.shape}, the same as in one call: {same}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555)
