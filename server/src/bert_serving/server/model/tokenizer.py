"""Rows to token ids: the Rust tokenizer for the words, NumPy for everything around them.

The Rust tokenizer only cuts texts into word pieces. Special tokens, segment ids and
truncation are put around the pieces of all rows at once, by array operations, so that no
Python loop runs over tokens: a text costs Python less than a microsecond. It knows
nothing of torch, of batches, or of what is done with the ids.

Parallelism: `tokenize` runs in another thread than the model, and releases the GIL. On a
CPU the model needs every core, and tokenizing is some percent of its work, so the
tokenizer is kept to its caller's thread (`parallel=False`); beside a GPU the cores are
free, and it may use all. `TOKENIZERS_PARALLELISM` in the environment wins over both.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from bert_serving.client.rows import Row

from .checkpoint import read_json
from .quiet_transformers import quiet_transformers
from .replica import ModelLoadError, TokenRows

_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

# what transformers can make a tokenizer of: vocabularies of byte-level BPE, of SentencePiece
_OTHER_FILES = ("vocab.json", "*.model", "vocab.txt")

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

    @property
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
        self._single = Template.probe(rust, "a")
        self._pair = Template.probe(rust, "a", "a")
        self._tokens = _BARE if no_special_token else self._single
        self.max_length = max_length
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
        if limit <= self._pair.size:
            raise ValueError(
                f"max_length={limit}: expected more than the {self._pair.size} special tokens"
            )
        is_pair = np.fromiter((type(row) is tuple for row in rows), np.bool_, len(rows))
        has_pairs = bool(is_pair.any())
        sides: Sequence[Any] = rows
        if has_pairs:
            sides = list(chain.from_iterable(row if type(row) is tuple else (row,) for row in rows))
        pieces = self._look_up(sides) if is_tokenized else self._split(sides)
        side_sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        flat = np.fromiter(chain.from_iterable(pieces), np.int32, int(side_sizes.sum()))
        firsts, seconds = _two_sides(side_sizes, is_pair)
        single = self._tokens if is_tokenized else self._single
        return self._assemble(flat, firsts, seconds, is_pair, limit, single)

    def token_texts(self, ids: npt.NDArray[np.int32]) -> list[str]:
        """Return the token strings of vocabulary ids."""
        return list(map(self._texts.__getitem__, ids.tolist()))

    def _split(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _look_up(self, rows: Sequence[list[str]]) -> list[list[int]]:
        return [list(map(self._vocab.__getitem__, tokens)) for tokens in rows]

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
        kept_firsts, kept_seconds = _longest_first(firsts, seconds, limit - extra)
        is_cut = (kept_firsts < firsts) | (kept_seconds < seconds)
        if is_cut.any():
            pieces = pieces[_kept(firsts, seconds, kept_firsts, kept_seconds)]
        lengths = kept_firsts + kept_seconds + extra
        starts = np.cumsum(lengths) - lengths
        ids = np.empty(int(lengths.sum()), np.int32)
        segment_ids = np.zeros(len(ids), np.uint8)
        special = np.zeros(len(ids), np.bool_)
        for template, chosen in ((single, ~is_pair), (self._pair, is_pair)):
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


def load_tokenizer(
    directory: Path,
    *,
    max_positions: int,
    lower_case: bool | None,
    parallel: bool,
    no_special_token: bool = False,
    lower_case_first: bool = False,
) -> Tokenizer:
    """Return the tokenizer of a model: `tokenizer.json`, or else what can be made into one.

    Args:
        directory: the model's.
        max_positions: most tokens that the model can take.
        lower_case: whether to fold case; None is as the files say.
        parallel: whether it may use every core.
        no_special_token: rows of tokens, but for pairs, go in as they are.
        lower_case_first: fold case before whatever its own files say.

    Raises:
        ModelLoadError: files missing or broken, or special tokens missing from them.

    """
    # the tokenizer library has no other switch; it reads this at each batch
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if parallel else "false")
    config_path = directory / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    names = {name: _token_name(config.get(name), usual) for name, usual in _SPECIAL_TOKENS.items()}
    try:
        rust = _rust_tokenizer(directory, config, names)
    except ModelLoadError:
        raise
    except Exception as error:  # noqa: BLE001  the Rust side raises plain Exception
        raise ModelLoadError(f"{directory}: the tokenizer cannot be read: {error}") from None
    _set_case(rust, config, lower_case)
    if lower_case_first:
        own = [] if rust.normalizer is None else [rust.normalizer]
        rust.normalizer = Normalizers([Lowercase(), *own])
    _check_special_tokens(rust, config, names, directory)
    limit = config.get("model_max_length")
    if isinstance(limit, int) and 0 < limit < max_positions:
        max_positions = limit
    # byte-level ones may have none, as to them no text is unknown
    unknown = (name for name in (names["unk_token"], "<unk>") if rust.token_to_id(name) is not None)
    return Tokenizer(
        rust,
        max_length=max_positions,
        unk_token=next(unknown, None),
        no_special_token=no_special_token,
    )


def _rust_tokenizer(
    directory: Path, config: Mapping[str, Any], names: Mapping[str, str]
) -> RustTokenizer:
    if (directory / "tokenizer.json").is_file():
        return RustTokenizer.from_file(str(directory / "tokenizer.json"))
    if (directory / "vocab.txt").is_file():
        with (directory / "vocab.txt").open(encoding="utf-8", newline="\n") as file:
            vocab = {line.rstrip("\r\n"): number for number, line in enumerate(file)}
        # others than BERT have such a file, too: then what they call [CLS] is in it
        if names["cls_token"] in vocab or "<s>" not in vocab:
            return _bert_tokenizer(vocab, config, names)
    return _converted_tokenizer(directory)


def _bert_tokenizer(
    vocab: dict[str, int], config: Mapping[str, Any], names: Mapping[str, str]
) -> RustTokenizer:
    rust = RustTokenizer(WordPiece(vocab, unk_token=names["unk_token"]))
    rust.normalizer = BertNormalizer()
    rust.pre_tokenizer = BertPreTokenizer()
    cls, sep = names["cls_token"], names["sep_token"]
    if cls in vocab and sep in vocab:
        rust.post_processor = TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0",
            pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
        )
    rust.add_special_tokens([name for name in names.values() if name in vocab])
    added = config.get("added_tokens_decoder", {})
    rust.add_tokens([_added_token(added[number]) for number in sorted(added, key=int)])
    return rust


def _converted_tokenizer(directory: Path) -> RustTokenizer:
    """Return what transformers makes of a tokenizer's files of another kind."""
    if not any(path for pattern in _OTHER_FILES for path in directory.glob(pattern)):
        # without any, transformers would make up an empty vocabulary
        raise ModelLoadError(
            f"no tokenizer.json or vocab.txt in {directory}, nor {', '.join(_OTHER_FILES)}"
        )
    from transformers import AutoTokenizer  # here, as only few models pay for it

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # noqa: BLE001  whatever its converters raise
            text = " ".join(str(error).split())[:200]
            raise ModelLoadError(
                f"{directory}: no tokenizer.json, and transformers cannot make one: {text} "
                f"(SentencePiece files need pip install sentencepiece protobuf)"
            ) from None
    if not tokenizer.is_fast:
        raise ModelLoadError(
            f"{directory}: {type(tokenizer).__name__} is written in Python and has no Rust form: "
            "put a tokenizer.json beside the model"
        )
    rust: RustTokenizer = tokenizer.backend_tokenizer
    return rust


def _check_special_tokens(
    rust: RustTokenizer, config: Mapping[str, Any], names: Mapping[str, str], directory: Path
) -> None:
    """Raise ModelLoadError if tokens are missing that its files, or else BERT's, say it has."""
    is_bert = isinstance(rust.model, WordPiece) and rust.post_processor is None
    needed = [
        names[name]
        for name in ("unk_token", "cls_token", "sep_token")
        if is_bert or config.get(name)
    ]
    if isinstance(rust.model, WordPiece):
        needed.append(rust.model.unk_token)
    missing = [name for name in dict.fromkeys(needed) if rust.token_to_id(name) is None]
    if missing:
        raise ModelLoadError(f"{directory}: the vocabulary has no {', '.join(missing)}")


def _set_case(rust: RustTokenizer, config: Mapping[str, Any], lower_case: bool | None) -> None:
    """Set the normalizer as `tokenizer_config.json` says, which wins over `tokenizer.json`."""
    normalizer = rust.normalizer
    if not isinstance(normalizer, BertNormalizer):
        is_cased = normalizer is None or normalizer.normalize_str("A") == "A"
        if lower_case is not None and lower_case == is_cased:
            raise ModelLoadError("lower_case cannot be set: the model has its own normalizer")
        return
    if lower_case is None:
        lower_case = config.get("do_lower_case")
    rust.normalizer = BertNormalizer(
        clean_text=normalizer.clean_text,
        handle_chinese_chars=config.get("tokenize_chinese_chars", normalizer.handle_chinese_chars),
        strip_accents=config.get("strip_accents", normalizer.strip_accents),
        lowercase=normalizer.lowercase if lower_case is None else lower_case,
    )


def _token_name(value: Any, usual: str) -> str:
    # older files write an added token out as an object
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else usual


def _added_token(value: Mapping[str, Any]) -> AddedToken:
    options = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{name: value[name] for name in options if name in value})


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
