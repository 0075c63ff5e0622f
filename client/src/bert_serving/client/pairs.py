"""Pairs written into one text, as bert-as-service's users did: `question ||| answer`.

Natively a pair is a tuple and nothing inside a text means anything. This is the other way,
for callers that ask for it by a separator; its rules are bert-as-service's.
"""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row

BERT_AS_SERVICE_SEPARATOR = " ||| "


def check_separator(separator: str | None) -> str | None:
    """Return a checked `pair_separator`."""
    if separator is not None and (not isinstance(separator, str) or not separator.strip()):
        raise ValueError(
            f"pair_separator={separator!r}: expected a str that is not blank, such as "
            f"{BERT_AS_SERVICE_SEPARATOR!r}, or None"
        )
    return separator


def split_row(row: Row, separator: str) -> Row:
    """Return the pair that a row holds; one that is a pair already stays as it is."""
    if isinstance(row, str):
        return split_text(row, separator)
    return split_tokens(row, separator) if isinstance(row, list) else row


def split_text(text: str, separator: str) -> Row:
    """Return the pair that a text holds, or the text as it is.

    It is cut at the last separator. Blanks around the text don't count, so that a separator
    which ends in a blank neither begins nor ends a pair; and a text of several lines is none.
    """
    line = text.strip()
    first, found, second = line.rpartition(separator)
    if not found or "\n" in line:
        return text
    return (first, second) if second else first


def split_tokens(tokens: Sequence[str], separator: str) -> Row:
    """Return the pair that tokens hold, cut at the first token that is the bare separator."""
    token = separator.strip()
    if token not in tokens:
        return list(tokens)
    place = tokens.index(token)
    first, second = list(tokens[:place]), list(tokens[place + 1 :])
    return (first, second) if second else first
