"""From a model's files to its `Tokenizer`: what is there, and what can be made of it.

Parallelism: on a CPU one thread tokenizes and computes by turns, tokenizing is some percent of
the work, and the tokenizer's own threads would meet the model's, which still spin: two cores took
0.84 to 0.96 of one's time for it (measured). So it is kept to its caller's thread
(`parallel=False`); beside a GPU the cores are free, and it may use all. `TOKENIZERS_PARALLELISM`
in the environment wins over both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from .checkpoint import read_json
from .quiet_transformers import quiet_transformers
from .replica import ModelLoadError
from .tokenizer import Tokenizer

_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

# what transformers can make a tokenizer of: vocabularies of byte-level BPE, of SentencePiece
_OTHER_FILES = ("vocab.json", "*.model", "vocab.txt")


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
    config = _read_if_there(directory / "tokenizer_config.json")
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
            return _bert_tokenizer(vocab, names, _added_tokens(directory, config, names))
    return _converted_tokenizer(directory)


def _bert_tokenizer(
    vocab: dict[str, int], names: Mapping[str, str], added: list[AddedToken]
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
    rust.add_tokens(added)
    return rust


def _added_tokens(
    directory: Path, config: Mapping[str, Any], names: Mapping[str, str]
) -> list[AddedToken]:
    """Return the tokens that were added to a vocabulary, in the order of their ids.

    `tokenizer_config.json` describes them; before transformers 4.34 files of their own named them.
    """
    special = config.get("additional_special_tokens") or ()
    if "added_tokens_decoder" in config:
        described = config["added_tokens_decoder"]
        added = [_added_token(described[number]) for number in sorted(described, key=int)]
    else:
        ids = _read_if_there(directory / "added_tokens.json")
        known = {*names.values(), *(_token_name(token, "") for token in special)}
        added = [
            AddedToken(token, special=token in known, normalized=token not in known)
            for token in sorted(ids, key=ids.__getitem__)
        ]
        others = _read_if_there(directory / "special_tokens_map.json")
        special = special or others.get("additional_special_tokens") or ()
    contents = {token.content for token in added}
    more = [_special_token(token) for token in special]
    return [*added, *(token for token in more if token.content not in contents)]


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


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_name(value: Any, usual: str) -> str:
    # older files write an added token out as an object
    name = value.get("content") if isinstance(value, dict) else value
    return name if isinstance(name, str) else usual


def _added_token(value: Mapping[str, Any]) -> AddedToken:
    options = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{name: value[name] for name in options if name in value})


def _special_token(value: Any) -> AddedToken:
    options = value if isinstance(value, dict) else {"content": value}
    return _added_token({"normalized": False, **options, "special": True})
