"""One word, three uses: word vectors in context tell a bank of money from a bank of a river.

    python examples/word_senses.py [PORT]

`scripts/demo` starts a server and runs this.
"""

import sys

import numpy as np

from bert_serving.client import BertClient

SENTENCE = (
    "After stealing money from the bank vault, the bank robber was seen fishing on the "
    "Mississippi river bank."
)
LAST_FOUR = [-4, -3, -2, -1]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of the angle between two vectors."""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def main(port: int) -> None:
    """Print a sentence's tokens, its vector, and what its three banks have in common."""
    with BertClient(port=port) as bc:
        print(SENTENCE, end="\n\n")
        tokens, ids, _ = bc.tokenize(SENTENCE)
        print("Its tokens and their ids:")
        print("  " + "  ".join(f"{t} {i}" for t, i in zip(tokens, ids, strict=True)), end="\n\n")

        vector = bc.encode(SENTENCE)
        first = " ".join(f"{value:.4f}" for value in vector[:6])
        print(f"The sentence's vector, shape {vector.shape}: {first} …", end="\n\n")

        words = bc.encode(SENTENCE, pooling="none", layers=LAST_FOUR, layer_reduce="sum")
        vault, robber, river = (words[i] for i, token in enumerate(tokens) if token == "bank")
        print("The three banks, each the sum of the last four layers:")
        for name, bank in (("vault", vault), ("robber", robber), ("river", river)):
            print(f"  {name:>6}  shape {bank.shape}: {' '.join(f'{v:.4f}' for v in bank[:6])} …")
        print("Their cosines:")
        print(f"  bank vault  and bank robber: {cosine(vault, robber):.3f}")
        print(f"  bank robber and river bank:  {cosine(robber, river):.3f}")
        print(f"  bank vault  and river bank:  {cosine(vault, river):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555)
