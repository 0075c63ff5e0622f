"""Texts much longer than what is kept of them: read only as far as that.

A row is cut to so many tokens, so that the rest of a very long text need not be read, where it
cannot change what comes before it. That is certain of BERT's own tokenizer: words stand between
white space, whatever stands around them, and each becomes pieces by itself. Those of other models
may look further, and read all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer

Text: TypeAlias = str | tuple[str, str]

CHARS_A_TOKEN = 8  # with so many, one part nearly always suffices
LEAST_PART_CHARS = 1024
_WHITE_SPACE = re.compile("[ \t\r\n]")  # no normalizer makes anything else of these


def reads_word_by_word(rust: RustTokenizer) -> bool:
    """Whether the pieces of a text are those of its parts, where white space is between them."""
    normalizer = rust.normalizer
    normalizers = [normalizer]
    if isinstance(normalizer, Normalizers):
        normalizers = list(normalizer)  # type: ignore[call-overload]  # its stub has no iteration
    return (
        isinstance(rust.model, WordPiece)
        and isinstance(rust.pre_tokenizer, BertPreTokenizer)
        and all(
            each is None or isinstance(each, BertNormalizer | Lowercase) for each in normalizers
        )
        and not any(map(_has_white_space, _spellings_of_added_tokens(rust)))
    )


def part_chars(limit: int) -> int:
    """Return how many characters are read at a time of a text that is cut to so many tokens."""
    return max(CHARS_A_TOKEN * limit, LEAST_PART_CHARS)


def read_in_parts(
    rows: Sequence[Text], limit: int, read: Callable[[Sequence[str]], list[list[int]]]
) -> list[list[int]]:
    """Return the pieces of each text of rows, those of a very long one as far as is needed.

    These are at least `limit`, or all. Of a pair only the longer text may be such a one, and has
    more pieces than the other one then, or all: how it is cut depends on which has more.

    Args:
        rows: texts and pairs.
        limit: more than are ever kept of a row.
        read: returns the pieces of each text, all of them.

    """
    size = part_chars(limit)
    texts: list[str] = []
    others: dict[int, int | None] = {}  # of each very long one, the other text of its pair
    for row in rows:
        sides: tuple[str, ...] = (row,) if isinstance(row, str) else row
        longer = len(sides) - 1 if len(sides[-1]) > len(sides[0]) else 0
        if len(sides[longer]) > size:
            number = len(texts) + longer
            others[number] = len(texts) + 1 - longer if len(sides) == 2 else None
        texts.extend(sides)
    ends = {number: _part_end(texts[number], size) for number in others}
    pieces = read([text[: ends.get(number)] for number, text in enumerate(texts)])
    for number, other in others.items():
        text, end, own = texts[number], ends[number], pieces[number]
        enough = limit if other is None else max(limit, len(pieces[other]) + 1)
        while len(own) < enough and end < len(text):
            start, end = end, _part_end(text, end + size)
            own += read([text[start:end]])[0]
    return pieces


def _part_end(text: str, start: int) -> int:
    """Return where the first white space is from a place on, or else the text's end."""
    found = _WHITE_SPACE.search(text, start)
    return found.start() if found else len(text)


def _spellings_of_added_tokens(rust: RustTokenizer) -> list[str]:
    added = [token.content for token in rust.get_added_tokens_decoder().values()]
    if rust.normalizer is None:
        return added
    return [*added, *map(rust.normalizer.normalize_str, added)]


def _has_white_space(text: str) -> bool:
    return any(map(str.isspace, text))
