"""The examples run as they stand, against a real server, and print what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server_process import SECOND, ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

PRINTED = {
    "word_senses.py": ["bank 2924", "shape (384,)", "bank vault  and river bank"],
    "question_search.py": ["How do I stop a running server?", "Do I need a GPU?"],
    "own_tokenizer.py": ["not in the vocabulary: embeddings", "em ##bed ##ding ##s", "(2, 384)"],
    "classifier.py": ["accuracy", "cooking: Stir the rice", "weather: Is it windy today?"],
    "data_loader.py": ["epoch 7: loss 0.0", "36 of 36 are right"],
    "asynchronous.py": [
        f"{way}: (100, 384), the same as in one call: True"
        for way in ("in the background", "generator", "asyncio")
    ],
    "broadcast.py": [
        "index received (3, 384) from editor",
        "model received (1, 384) from editor",
        "editor got (3, 384)",
    ],
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises(name: str, embedded_server: ServerProcess) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, str(embedded_server.port)],
        capture_output=True,
        text=True,
        timeout=120 * SECOND,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for text in PRINTED[name]:
        assert text in run.stdout
