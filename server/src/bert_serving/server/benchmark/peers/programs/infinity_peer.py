"""infinity: its HTTP server, started and ended here, asked by several connections at once."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .lines import Life, Options, Peer
from .tuning import fastest

HOST = "127.0.0.1"
READY_S = 240.0
POLL_S = 0.2
ANSWER_S = 300.0
CONNECTIONS = 4

ROWS = (64, 256, 32)
"""Texts of a request worth trying, the likeliest first; the server batches across requests."""

NOT_THE_MODEL = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""A recipe of sentence-transformers may cut rows: without it they are as long as elsewhere."""


def open_peer(options: Options, life: Life) -> Peer:
    """Start the server, and wait until it answers."""
    folder = Path(tempfile.mkdtemp(prefix="bert-serving-infinity-"))
    life.at_end.append(partial(shutil.rmtree, folder, ignore_errors=True))
    for path in Path(options.model_dir).iterdir():
        if path.is_file() and path.name not in NOT_THE_MODEL:
            (folder / path.name).symlink_to(path.resolve())
    port = _free_port()
    server = _start(folder, port, options)
    life.at_end.insert(0, server.kill)
    _wait_ready(server, port)
    pool = ThreadPoolExecutor(CONNECTIONS)
    rows = ROWS[0]

    def encode_in(size: int, texts: list[str]) -> list[Any]:
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        return [vector for part in pool.map(partial(_embed, port), parts) for vector in part]

    def tune(texts: list[str], limit_s: float) -> str:
        nonlocal rows
        rows = fastest(ROWS, lambda size: encode_in(size, texts), limit_s)
        return f"{CONNECTIONS} connections, requests of {rows} texts"

    return Peer(
        name="infinity",
        version=metadata.version("infinity-emb"),
        dtype=options.dtype,
        layers=json.loads((folder / "config.json").read_text("utf-8"))["num_hidden_layers"],
        threads=options.threads,
        encode=lambda texts: encode_in(rows, texts),
        tune=tune,
        url=f"http://{HOST}:{port}",
    )


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _start(folder: Path, port: int, options: Options) -> subprocess.Popen[bytes]:
    command = [
        *(str(Path(sys.executable).with_name("infinity_emb")), "v2"),
        *("--model-id", str(folder), "--served-model-name", "peer"),
        *("--host", HOST, "--port", str(port)),
        *("--engine", "torch", "--device", "cpu", "--dtype", options.dtype),
        "--no-vector-disk-cache",  # it would look up what it has encoded in the round before
        "--no-bettertransformer",  # gone from what it imports it from; torch does the same today
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    }
    return subprocess.Popen(  # noqa: S603  # the peer, in its own interpreter
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment
    )


def _wait_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"infinity_emb ended with status {server.returncode}")
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_S)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(POLL_S)
    raise TimeoutError(f"infinity_emb did not answer within {READY_S:g} s")


def _embed(port: int, texts: list[str]) -> list[Any]:
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_S)
    body = json.dumps({"model": "peer", "input": texts, "encoding_format": "base64"})
    try:
        connection.request("POST", "/embeddings", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"infinity answered {response.status}: {answer[:300]!r}")
    finally:
        connection.close()
    return [
        np.frombuffer(base64.b64decode(entry["embedding"]), np.float32)
        for entry in json.loads(answer)["data"]
    ]
