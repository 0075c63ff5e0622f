"""Use a tokenizer of your own: the rows are tokens, which the server only looks up.

    python examples/own_tokenizer.py [PORT]

Words that the vocabulary lacks become [UNK] this way; `tokenize()` shows what the server's
own tokenizer would have made of them.
"""

import re
import sys

from bert_serving.client import BertClient

TEXTS = ["The embeddings are unbelievable!", "What are embeddings good for?"]


def words(text: str) -> list[str]:
    """Return lower-case words and punctuation: as simple as a tokenizer can be."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def main(port: int) -> None:
    """Print what both tokenizers give, and the vectors' shapes."""
    rows = [words(text) for text in TEXTS]
    with BertClient(port=port) as bc:
        own = bc.encode(rows, is_tokenized=True)
        _, seen = bc.encode(rows, is_tokenized=True, show_tokens=True)
        servers = bc.tokenize(TEXTS).tokens
    for sent, understood, pieces in zip(rows, seen, servers, strict=True):
        unknown = [
            word for word, token in zip(sent, understood[1:-1], strict=True) if token == "[UNK]"
        ]
        print("own tokens:    ", " ".join(sent))
        print("not in the vocabulary:", ", ".join(unknown) or "none")
        print("word pieces:   ", " ".join(pieces))
    print("vectors:", own.shape)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5555)
