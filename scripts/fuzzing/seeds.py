"""Makes the seeds in tests/fuzz/corpus from the golden frames: run it when these change."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgpack
from targets import to_bytes

from bert_serving.client.rows import pack_rows
from bert_serving.server.worker_protocol import Answers, Batch, message

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
GOLDEN = ROOT / "tests" / "unit" / "golden" / "protocol_v1.json"


def golden(kind: str) -> dict[str, list[bytes]]:
    """Return the golden frames of requests or answers by name."""
    messages: dict[str, Any] = json.loads(GOLDEN.read_text("utf-8"))[kind]
    return {
        name: [bytes.fromhex(frame) for frame in entry["frames"]]
        for name, entry in messages.items()
    }


def seeds() -> dict[str, dict[str, bytes]]:
    """Return the seeds of each target by name."""
    requests, answers = golden("requests"), golden("answers")
    encodes = {name: frames for name, frames in requests.items() if name.startswith("encode")}
    results = {name: frames for name, frames in answers.items() if name.startswith("result")}
    parts = [frames[1:] for frames in encodes.values()]
    ours = {
        "batch": Batch(1, parts, [1.5] * len(parts), 10.0, is_express=True).to_frames(),
        "answers": Answers(1, [f[1:] for f in results.values()], [3] * len(results)).to_frames(),
        "starting": message("starting", worker=0, pid=1, host="host", device="cpu"),
        "ready": message(
            "ready",
            worker=0,
            pid=1,
            host="host",
            device="cpu",
            takes_express=True,
            max_batch_tokens=512,
            max_batch_rows=8,
            model={"max_length": 512},
        ),
        "worker_lost": message("worker_lost", worker=0, pid=1),
        "stop": message("stop"),
    }
    texts = [["one", ["a", "pair"]], [["to", "##kens"], [["a"], ["b"]]]]
    return {
        "any_frames": {"hello": to_bytes(requests["hello"]), "web": b"GET / HTTP/1.1\r\n\r\n"},
        "request": {name: to_bytes(frames[1:]) for name, frames in requests.items()},
        "answer": {name: to_bytes(frames[1:]) for name, frames in answers.items()},
        "rows": {
            "texts": b"\x04" + pack_rows(texts[0]),
            "tokens": b"\x05" + pack_rows(texts[1]),
            "deep": b"\x05" + msgpack.packb([[[["a"]]], []]),
        },
        "worker": {name: to_bytes(frames[1:]) for name, frames in ours.items()},
        "batch": {name: to_bytes(frames[1:]) for name, frames in encodes.items()},
        "legacy": {
            "texts": to_bytes([b"me", b'["a", "b ||| c"]', b"1", b"2"]),
            "tokens": to_bytes([b"me", b'[["a", "|||", "b"], []]', b"2", b"2"]),
            "config": to_bytes([b"me", b"SHOW_CONFIG", b"3", b"1"]),
        },
        "subscription": {"two": to_bytes([b"\x01me", b"\x00me"])},
    }


def main() -> int:
    """Write every seed to its file."""
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
