"""Rows to token ids: the Rust tokenizer for the words, NumPy for everything around them.

The Rust tokenizer only cuts texts into word pieces. Special tokens, segment ids and
truncation are put around the pieces of all rows at once, by array operations, so that no
Python loop runs over tokens: a text costs Python less than a microsecond. It knows
nothing of torch, of batches, or of what is done with the ids.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as RustTokenizer

from bert_serving.client.rows import Row

from .long_texts import part_chars, read_in_parts, reads_word_by_word
from .replica import ModelLoadError, TokenRows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Template:
    """The special tokens around a text, or around and between the two texts of a pair.

    Attributes:
        ids: of the special tokens before, after (or between), and at the end; for a single
            text, the last is empty.
        segment_ids: theirs, in the same places.
        sides: the segment ids of the first and the second text.

    """

    ids: tuple[tuple[int, ...], ...]
    segment_ids: tuple[tuple[int, ...], ...]
    sides: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """How many special tokens a row gets."""
        return sum(map(len, self.ids))

    @classmethod
    def probe(cls, tokenizer: RustTokenizer, text: str, pair: str | None = None) -> Template:
        """Return what the tokenizer puts around one text or two, by trying it."""
        encoding = tokenizer.encode(text, pair)
        ids: list[list[int]] = [[]]
        segment_ids: list[list[int]] = [[]]
        sides: list[int] = []
        for token, segment, side in zip(
            encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True
        ):
            if side is None:
                ids[-1].append(token)
                segment_ids[-1].append(segment)
            elif side == len(sides):
                sides.append(segment)
                ids.append([])
                segment_ids.append([])
        if len(sides) != (1 if pair is None else 2):
            raise ModelLoadError(
                f"the tokenizer makes no token of the text {text!r}: its files are not whole"
            )
        return cls(tuple(map(tuple, ids)), tuple(map(tuple, segment_ids)), tuple(sides))


# nothing around a text
_BARE = Template(((), ()), ((), ()), (0,))


class Tokenizer:
    """Turns rows into ids; not to be used by two threads at a time."""

    def __init__(
        self,
        rust: RustTokenizer,
        *,
        max_length: int,
        unk_token: str | None,
        no_special_token: bool = False,
    ) -> None:
        rust.no_truncation()
        rust.no_padding()
        self._rust = rust
        self._may_read_in_parts = reads_word_by_word(rust)
        self._single = Template.probe(rust, "a")
        self._pair = Template.probe(rust, "a", "a")
        self._tokens = _BARE if no_special_token else self._single
        self.max_length = max_length
        self.least_length = self._pair.size + 1  # that a row may be cut to: one token of a pair
        vocab = rust.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self._texts = [unk_token or ""] * self.vocab_size
        for text, token in vocab.items():
            self._texts[token] = text
        self._vocab = _Vocab(vocab)
        self._vocab.unknown = None if unk_token is None else vocab[unk_token]

    def tokenize(
        self, rows: Sequence[Row], *, is_tokenized: bool, max_length: int | None
    ) -> TokenRows:
        """Return rows as ids, cut as transformers cuts them (`longest_first`); see `Replica`."""
        limit = min(max_length or self.max_length, self.max_length)
        if limit < self.least_length:
            raise ValueError(
                f"max_length={limit}: expected more than the {self._pair.size} special tokens"
            )
        single = self._tokens if is_tokenized else self._single
        if len(rows) == 1 and type(rows[0]) is not tuple:  # often one that somebody waits for
            (alone,) = self._pieces(rows, rows, limit, is_tokenized=is_tokenized)
            return _alone(alone, single, limit)
        is_pair = np.fromiter((type(row) is tuple for row in rows), np.bool_, len(rows))
        has_pairs = bool(is_pair.any())
        sides: Sequence[Any] = rows
        if has_pairs:
            sides = list(chain.from_iterable(row if type(row) is tuple else (row,) for row in rows))
        pieces = self._pieces(rows, sides, limit, is_tokenized=is_tokenized)
        side_sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        flat = np.fromiter(chain.from_iterable(pieces), np.int32, int(side_sizes.sum()))
        firsts, seconds = _two_sides(side_sizes, is_pair)
        return self._assemble(flat, firsts, seconds, is_pair, limit, single)

    def token_texts(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the token strings of vocabulary ids."""
        return list(map(self._texts.__getitem__, ids.tolist()))

    def _pieces(
        self, rows: Sequence[Any], sides: Sequence[Any], limit: int, *, is_tokenized: bool
    ) -> list[list[int]]:
        """Return the ids of each side of rows, with nothing around them.

        Those are of texts, or of tokens that were given. At least so many are there as rows are
        cut to, or else all.
        """
        if is_tokenized:
            return [list(map(self._vocab.__getitem__, tokens)) for tokens in sides]
        if self._may_read_in_parts and max(map(len, sides), default=0) > part_chars(limit):
            return read_in_parts(rows, limit, self._read)
        return self._read(sides)

    def _read(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _assemble(
        self,
        pieces: npt.NDArray[np.int32],
        firsts: Ints,
        seconds: Ints,
        is_pair: Any,
        limit: int,
        single: Template,
    ) -> TokenRows:
        """Put special tokens around the pieces; row i has `firsts[i] + seconds[i]` of them."""
        extra = np.where(is_pair, self._pair.size, single.size)
        is_cut = firsts + seconds > limit - extra
        kept_firsts, kept_seconds = firsts, seconds
        if is_cut.any():
            kept_firsts, kept_seconds = _longest_first(firsts, seconds, limit - extra)
            pieces = pieces[_kept(firsts, seconds, kept_firsts, kept_seconds)]
        lengths = kept_firsts + kept_seconds + extra
        starts = np.cumsum(lengths) - lengths
        ids = np.empty(int(lengths.sum()), np.int32)
        segment_ids = np.zeros(len(ids), np.uint8)
        special = np.zeros(len(ids), np.bool_)
        for template, chosen in ((single, ~is_pair), (self._pair, is_pair)):
            if not chosen.any():
                continue
            place = starts[chosen]
            sizes = (kept_firsts[chosen], kept_seconds[chosen])
            for number, (tokens, segments) in enumerate(
                zip(template.ids, template.segment_ids, strict=True)
            ):
                for token, segment in zip(tokens, segments, strict=True):
                    ids[place], segment_ids[place], special[place] = token, segment, True
                    place = place + 1
                if number < len(template.sides):
                    if template.sides[number]:
                        segment_ids[_ranges(place, sizes[number])] = template.sides[number]
                    place = place + sizes[number]
        ids[~special] = pieces
        return TokenRows(ids, segment_ids, special, lengths.astype(np.int32), is_cut)


def _alone(pieces: Sequence[int], template: Template, limit: int) -> TokenRows:
    """Return one text as `Tokenizer` does several, in a fifth of the time."""
    (before, after), (segments_before, segments_after) = template.ids, template.segment_ids
    kept = pieces[: limit - template.size]
    special = np.zeros(template.size + len(kept), np.bool_)
    special[: len(before)] = special[len(before) + len(kept) :] = True
    return TokenRows(
        ids=np.array([*before, *kept, *after], np.int32),
        segment_ids=np.array(
            [*segments_before, *template.sides * len(kept), *segments_after], np.uint8
        ),
        special=special,
        lengths=np.array([len(special)], np.int32),
        truncated=np.array([len(kept) < len(pieces)]),
    )


class _Vocab(dict[str, int]):
    """Ids by token; a missing one is unknown. A subclass, as `map` over it stays in C."""

    unknown: int | None

    def __missing__(self, token: str) -> int:
        if self.unknown is None:
            raise ValueError(
                f"token {reprlib.repr(token)} is not in the vocabulary, which has no token for "
                "unknown ones: send the text itself"
            )
        return self.unknown


def _two_sides(side_sizes: Ints, is_pair: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Return the sizes of every row's first and second text, the second 0 where there is none."""
    first_side = np.cumsum(1 + is_pair) - 1 - is_pair
    firsts = side_sizes[first_side]
    seconds = np.zeros_like(firsts)
    seconds[is_pair] = side_sizes[first_side[is_pair] + 1]
    return firsts, seconds


def _longest_first(firsts: Ints, seconds: Ints, room: Ints) -> tuple[Ints, Ints]:
    """Return how much of both texts fits, taking from the longer one, as `tokenizers` does."""
    shorter, longer = np.minimum(firsts, seconds), np.maximum(firsts, seconds)
    longer = np.minimum(longer, np.maximum(shorter, room - shorter))
    is_over = shorter + longer > room
    shorter = np.where(is_over, room // 2, shorter)
    longer = np.where(is_over, room - room // 2, longer)
    is_swapped = firsts > seconds
    return np.where(is_swapped, longer, shorter), np.where(is_swapped, shorter, longer)


def _kept(firsts: Ints, seconds: Ints, kept_firsts: Ints, kept_seconds: Ints) -> Ints:
    """Return the numbers of the pieces that stay, of all rows' pieces."""
    starts = np.cumsum(firsts + seconds) - firsts - seconds
    begins = np.stack([starts, starts + firsts], axis=1).ravel()
    return _ranges(begins, np.stack([kept_firsts, kept_seconds], axis=1).ravel())


def _ranges(begins: Ints, sizes: Ints) -> Ints:
    """Return `begins[i], begins[i] + 1, ...`, `sizes[i]` of them, for every i."""
    offsets = np.cumsum(sizes) - sizes
    ranges: Ints = np.arange(int(sizes.sum())) + np.repeat(begins - offsets, sizes)
    return ranges
