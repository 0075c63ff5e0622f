"""Find the question that was asked before: nearest neighbours among sentence vectors.

    bert-serving-start &
    python examples/question_search.py [PORT] ["your question" ...]

The answers' questions are encoded once; a new one is compared with all of them by one
matrix product. Vectors of length 1 make that product the cosine.
"""

import sys
from pathlib import Path

import numpy as np

from bert_serving.client import BertClient

DATA = Path(__file__).parent / "data" / "questions.tsv"
ASKED = [
    "what do I type to shut it down?",
    "my text has a thousand words, is that a problem?",
    "does it work on a machine without graphics card?",
]
TOP = 3


def main(port: int, asked: list[str]) -> None:
    """Print the questions that are most alike, and the answer of the best."""
    known = [line.split("\t") for line in DATA.read_text("utf-8").splitlines()]
    with BertClient(port=port) as bc:
        matrix = bc.encode([question for question, _ in known], layers=-1, normalize=True)
        queries = bc.encode(asked, layers=-1, normalize=True)
    for text, scores in zip(asked, queries @ matrix.T, strict=True):
        best = np.argsort(scores)[::-1][:TOP]
        print(f"\n> {text}")
        for number in best:
            print(f"  {scores[number]:.3f}  {known[number][0]}")
        print(f"  {known[best[0]][1]}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555, sys.argv[2:] or ASKED)
