"""What a GPU reaches with a model, against its own best matrix product of the same run.

The engine alone at several lengths, small batches with and without CUDA graphs, the whole
path from clients to clients, memory, and a profile. Written without a GPU at hand: with
`--device cpu` everything runs on a CPU, which shows that it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_report import to_markdown
from random_model import embedded_model, write_random_model
from torch.profiler import ProfilerActivity, profile

from bert_serving.client import BertClient
from bert_serving.client.view import DEFAULT_VIEW
from bert_serving.server.benchmark.server_process import ServerProcess
from bert_serving.server.model.device import choose_device
from bert_serving.server.model.encoder_replica import EncoderReplica
from bert_serving.server.model.loading import ReplicaConfig, load_replica
from bert_serving.server.model.machine import matrix_gflops
from bert_serving.server.model.replica import EncodeRequest, TokenRows

SMALL_BATCHES = ((1, 20), (1, 128), (8, 20), (32, 20), (32, 128))  # rows, tokens of each
BUDGETS_AT_ONCE = 4  # as many micro-batches as a worker's batch may have, and more
MOST_OPERATIONS = 15
FIRST_WORD = 2000  # of BERT's vocabulary: from here on there are words
START_S = 300.0

View = {"": DEFAULT_VIEW}


def rows_of(count: int, length: int, vocab_size: int) -> TokenRows:
    """Return so many rows of so many random tokens."""
    ids = np.random.default_rng(0).integers(FIRST_WORD, vocab_size, count * length)
    return TokenRows(
        ids.astype(np.int32),
        np.zeros(count * length, np.uint8),
        np.zeros(count * length, np.bool_),
        np.full(count, length, np.int32),
        np.zeros(count, np.bool_),
    )


def gflop_a_token(config: dict[str, int], layers: int, length: int) -> float:
    """Return what so many layers cost on a token of a row of such a length."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return layers * (8 * hidden**2 + 4 * hidden * inner + 4 * length * hidden) / 1e9


def seconds_of(work: Callable[[], object], limit_s: float) -> list[float]:
    """Return how long a piece of work takes, again and again; it is done once before."""
    work()
    times: list[float] = []
    deadline = time.perf_counter() + limit_s
    while len(times) < 3 or time.perf_counter() < deadline:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


class ModelRun:
    """All measurements of one model; each gives what belongs into the report."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        self.args = args
        self.config = json.loads((folder / "config.json").read_text())
        self.layers = self.config["num_hidden_layers"] - 1  # the default view is layer -2
        self.device = choose_device(args.device)

    def load(self, **options: Any) -> EncoderReplica:
        replica = load_replica(
            ReplicaConfig(
                model_dir=str(self.folder),
                device=self.args.device,
                dtype=self.args.dtype,
                max_batch_tokens=self.args.max_batch_tokens,
                compile=self.args.compile,
                **options,
            )
        )
        assert isinstance(replica, EncoderReplica)
        return replica

    def run(self) -> dict[str, Any]:
        limits = [self.limit()]
        replica = self.load()
        budget = replica.max_batch_tokens
        found: dict[str, Any] = {
            "model": replica.info.to_wire(),
            "max_batch_tokens": budget,
            "engine": [self.engine(replica, length) for length in self.lengths],
            "small": [self.small(replica, *size) for size in SMALL_BATCHES],
            "memory": self.memory(),
            "profile": [self.profile(replica, length) for length in self.lengths],
        }
        del replica
        if self.device.type == "cuda":
            bare = self.load(no_cuda_graphs=True)
            found["small, no graphs"] = [self.small(bare, *size) for size in SMALL_BATCHES]
            del bare
            gc.collect()
            torch.cuda.empty_cache()  # the servers to come need it
        limits.append(self.limit())
        found["limit_gflops"] = limits
        for entry in found["engine"]:
            entry["share"] = entry["tokens_per_s"] * entry["gflop_a_token"] / max(limits)
        found["end to end"] = [
            entry for workers in self.args.workers for entry in self.end_to_end(workers)
        ]
        return found

    @property
    def lengths(self) -> Sequence[int]:
        most = self.config["max_position_embeddings"]
        return [length for length in self.args.lengths if length <= most]

    def limit(self) -> float:
        """Return the rate of the best product in 16 bit (on a CPU, in its own type)."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return matrix_gflops(dtype, self.device)

    def engine(self, replica: EncoderReplica, length: int) -> dict[str, Any]:
        """Measure rows of one length, in a batch of several micro-batches."""
        count = max(BUDGETS_AT_ONCE * replica.max_batch_tokens // length, 1)
        request = EncodeRequest(rows_of(count, length, self.config["vocab_size"]), View)
        times = seconds_of(lambda: replica.encode([request]), self.args.seconds)
        return {
            "length": length,
            "rows": count,
            "gflop_a_token": gflop_a_token(self.config, self.layers, length),
            "tokens_per_s": count * length / statistics.median(times),
            "best_tokens_per_s": count * length / min(times),
        }

    def small(self, replica: EncoderReplica, count: int, length: int) -> dict[str, Any]:
        """Measure how long one small batch takes."""
        request = EncodeRequest(rows_of(count, length, self.config["vocab_size"]), View)
        replica.encode([request])  # and again in seconds_of: a graph is there at the second time
        times = seconds_of(lambda: replica.encode([request]), self.args.seconds / 4)
        return {"rows": count, "length": length, "ms": 1000 * statistics.median(times)}

    def memory(self) -> dict[str, float]:
        """Return megabytes: at most so far."""
        if self.device.type == "cuda":
            return {
                "allocated": torch.cuda.max_memory_allocated(self.device) / 1e6,
                "reserved": torch.cuda.max_memory_reserved(self.device) / 1e6,
            }
        return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}

    def profile(self, replica: EncoderReplica, length: int) -> dict[str, Any]:
        """Return where the time of one batch of rows of one length goes."""
        count = max(replica.max_batch_tokens // length, 1)
        request = EncodeRequest(rows_of(count, length, self.config["vocab_size"]), View)
        replica.encode([request])
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        started = time.perf_counter()
        with profile(activities=activities) as profiler:
            replica.encode([request])
        wall_us = 1e6 * (time.perf_counter() - started)
        kind = "device" if self.device.type == "cuda" else "cpu"
        averages = profiler.key_averages()
        times = {entry.key: getattr(entry, f"self_{kind}_time_total") for entry in averages}
        total = sum(times.values())
        first = sorted(times, key=lambda key: -times[key])[:MOST_OPERATIONS]
        return {
            "length": length,
            "rows": count,
            "busy": total / wall_us,
            "operations": {key: times[key] / total for key in first},
            "table": averages.table(
                sort_by=f"self_{kind}_time_total",
                row_limit=MOST_OPERATIONS,
                max_name_column_width=60,
            ),
        }

    def end_to_end(self, workers: int) -> list[dict[str, Any]]:
        """Measure clients of a server with so many workers on this one device."""
        options: dict[str, Any] = {
            "model_dir": self.folder,
            "dtype": self.args.dtype,
            "num_worker": workers,
            "port": 0,
        }
        if self.device.type == "cpu":
            options["cpu"] = True
        else:
            options["device_map"] = [self.device.index]
        if self.args.max_batch_tokens is not None:
            options["max_batch_tokens"] = self.args.max_batch_tokens
        if self.args.compile:
            options["compile"] = True
        words = (self.folder / "vocab.txt").read_text().split("\n")[FIRST_WORD:]
        words = [word for word in words if word.isascii() and word.isalpha()]
        with server(options) as port:
            return [
                {
                    "workers": workers,
                    "length": length,
                    "tokens_per_s": sum(client_rates(port, words, length, self.args)),
                }
                for length in self.lengths
            ]


# the whole path


@contextmanager
def server(options: dict[str, Any]) -> Iterator[int]:
    """Run a server for the time of the block; gives its port."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        process = ServerProcess(options, log, wait_s=START_S, check=lambda: None)
        try:
            process.start()
            yield process.port
        finally:
            process.stop(at_once=False)


def client_rates(port: int, words: list[str], length: int, args: argparse.Namespace) -> list[float]:
    """Return tokens a second of each of several processes, all at work at the same time."""
    spawn = multiprocessing.get_context("spawn")  # no fork of a process that has CUDA open
    barrier, answers = spawn.Barrier(args.clients), spawn.Queue()
    clients = [
        spawn.Process(
            target=client,
            args=(port, words, length, args.rows, args.seconds, number, barrier, answers),
        )
        for number in range(args.clients)
    ]
    for process in clients:
        process.start()
    try:
        return [answers.get(timeout=START_S) for _ in clients]
    finally:
        for process in clients:
            process.join(10)
            process.kill()


def client(
    port: int,
    words: list[str],
    length: int,
    rows: int,
    seconds: float,
    seed: int,
    barrier: Any,
    answers: Any,
) -> None:
    picks = np.random.default_rng(seed).integers(0, len(words), (rows, length - 2))
    texts = [" ".join(words[pick] for pick in row) for row in picks]
    with BertClient(port=port) as bc:
        tokens = int(bc.encode_detailed(texts, {}).n_tokens.sum())
        bc.encode(texts)
        barrier.wait(START_S)
        done, started = 0, time.perf_counter()
        while time.perf_counter() < started + seconds:
            bc.encode(texts)
            done += tokens
        answers.put(done / (time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda:0", help="as torch names it")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--models", nargs="+", default=["bert-base", "embedded"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[20, 50, 128, 512])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="on the one device")
    parser.add_argument("--clients", type=int, default=4, help="processes of clients")
    parser.add_argument("--rows", type=int, default=8192, help="rows of a client's call")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, about")
    parser.add_argument("--max_batch_tokens", type=int, help="default: calibrated")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("bench-gpu"), help="a folder")
    args = parser.parse_args()
    device = choose_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU: only a trial"
    results: dict[str, Any] = {
        "device": name,
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "arguments": " ".join(sys.argv[1:]),
        "clients": args.clients,
        "models": {},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            folder = embedded_model()
            if model != "embedded":
                folder = Path(scratch, model)
                folder.mkdir()
                write_random_model(folder, model, seed=0)
            results["models"][model] = ModelRun(folder, args).run()
            # after each, so that what was measured stays if the next one fails
            (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            (args.output / "results.md").write_text(to_markdown(results))
    print(f"results: {args.output / 'results.md'}")


if __name__ == "__main__":
    main()
