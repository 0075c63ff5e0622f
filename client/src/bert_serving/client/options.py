"""What a caller's arguments mean: shared by the blocking and the asyncio client."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .assembly import Embeddings, Encoding, Tokens
from .calls import EncodeCall, EncodeOptions
from .chunking import RowSource
from .fleet import Fleet
from .messages import MAX_NAME_CHARS
from .pairs import check_separator
from .version import __version__
from .view import View

DEFAULT_PORT = 5555
DEFAULT_TIMEOUT_MS = 60_000
DEFAULT_CONNECT_TIMEOUT_MS = 5_000
OUTPUT_FORMATS = ("ndarray", "list")
EMBEDDING = "embedding"
"""The name of the one view that `encode()` asks for."""


class TruncationWarning(UserWarning):
    """Some rows were cut to the maximum length; `Encoding.truncated` says which."""


def client_name(identity: str | bytes | None) -> str:
    """Return how a client introduces itself."""
    name = sender_name(identity) if identity else f"pid {os.getpid()}"
    return f"{name}, bert-serving-client {__version__}"[:MAX_NAME_CHARS]


def sender_name(identity: str | bytes) -> str:
    """Return an identity as text; bert-as-service's are bytes."""
    if isinstance(identity, bytes):
        identity = identity.decode("utf-8", "replace")
    return str(identity).encode("utf-8", "replace").decode()[:MAX_NAME_CHARS]


def group_name(name: str) -> str:
    """Return a checked name of a broadcast group."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not _is_unicode(name):
        raise ValueError(f"group={name!r}: expected a str of 1 to {MAX_NAME_CHARS} characters")
    return name


def seconds(name: str, milliseconds: float | None) -> float:
    """Return a time-out in seconds; None and -1 (as in bert-as-service) mean without end."""
    if milliseconds is None or milliseconds == -1:
        return float("inf")
    if not isinstance(milliseconds, (int, float)) or not milliseconds > 0:
        raise ValueError(f"{name}={milliseconds!r}: expected milliseconds above 0, or -1 for none")
    return milliseconds / 1000


def output_format(name: str) -> str:
    """Return a checked `output_fmt`."""
    if name not in OUTPUT_FORMATS:
        raise ValueError(f"output_fmt={name!r}: expected one of {', '.join(OUTPUT_FORMATS)}")
    return name


def encode_options(
    *,
    views: Mapping[str, View | Mapping[str, Any]],
    is_tokenized: bool = False,
    max_length: int | None = None,
    show_tokens: bool = False,
    on_empty: str = "encode",
    pair_separator: str | None = None,
    group: str | None = None,
    sender: str = "",
) -> EncodeOptions:
    """Return checked options; raises ValueError for what cannot be asked."""
    if max_length is not None and (type(max_length) is not int or not 0 < max_length < 1 << 31):
        raise ValueError(f"max_length={max_length!r}: expected a number of tokens, at least 1")
    if not all(isinstance(name, str) and _is_unicode(name) for name in views):
        raise ValueError(f"views={list(views)!r}: expected names that are str")
    return EncodeOptions(
        views={name: _checked_view(view) for name, view in views.items()},
        is_tokenized=bool(is_tokenized),
        max_length=max_length,
        show_tokens=bool(show_tokens),
        on_empty=on_empty,
        pair_separator=check_separator(pair_separator),
        group=None if group is None else group_name(group),
        sender=sender,
    )


def embedding_options(
    *,
    layers: Any = None,
    layer_reduce: Any = None,
    pooling: Any = None,
    normalize: Any = None,
    dims: Any = None,
    dtype: Any = None,
    **others: Any,
) -> EncodeOptions:
    """Return the options of an `encode()`: its one view, and what `encode_options` takes."""
    given = {
        "layers": layers,
        "layer_reduce": layer_reduce,
        "pooling": pooling,
        "normalize": normalize,
        "dims": dims,
        "dtype": dtype,
    }
    view = {name: value for name, value in given.items() if value is not None}
    return encode_options(views={EMBEDDING: view}, **others)


def new_call(texts: Any, encode_options: EncodeOptions, timeout_s: float) -> EncodeCall:
    """Return a call for whatever `encode()` takes: one str, or an iterable of rows.

    Raises:
        TypeError, ValueError: `texts` is not what can be encoded, with the row's number.

    """
    is_single = isinstance(texts, str)
    source = RowSource(
        [texts] if is_single else texts,
        is_tokenized=encode_options.is_tokenized,
        on_empty=encode_options.on_empty,
        pair_separator=encode_options.pair_separator,
        is_counted=encode_options.group is not None,
    )
    return EncodeCall(source, encode_options, timeout_s, is_single=is_single)


def finished_encoding(call: EncodeCall, fleet: Fleet) -> Encoding:
    """Return the answer of a call that is done, or raise what it ended with."""
    encoding = call.encoding(lambda name: fleet.empty_view(call, name))
    return single_encoding(encoding) if call.is_single else encoding


def warn_if_cut(encoding: Encoding, stacklevel: int) -> None:
    """Warn once a call about rows that were cut."""
    cut = int(np.count_nonzero(encoding.truncated))
    if cut:
        warnings.warn(
            f"{cut} of {np.size(encoding.truncated)} rows were cut to "
            f"{int(np.max(encoding.n_tokens))} tokens; "
            "encode_detailed() says which, check_length=False silences this",
            TruncationWarning,
            stacklevel=stacklevel + 1,
        )


def single_encoding(encoding: Encoding) -> Encoding:
    """Return the encoding of a call with one text: each value is that of its only row."""
    return Encoding(
        views={name: values[0] for name, values in encoding.views.items()},
        n_tokens=encoding.n_tokens[0],
        truncated=encoding.truncated[0],
        tokens=encoding.tokens[0] if encoding.tokens is not None else None,  # type: ignore[arg-type]
        token_ids=encoding.token_ids[0] if encoding.token_ids is not None else None,  # type: ignore[arg-type]
        segment_ids=encoding.segment_ids[0] if encoding.segment_ids is not None else None,  # type: ignore[arg-type]
        queue_ms=encoding.queue_ms,
        tokenize_ms=encoding.tokenize_ms,
        compute_ms=encoding.compute_ms,
    )


def formatted(values: Embeddings, output_fmt: str) -> Any:
    """Return embeddings as the client's `output_fmt` asks."""
    if output_fmt == "ndarray":
        return values
    return values.tolist() if isinstance(values, np.ndarray) else [row.tolist() for row in values]


def joined(embeddings: Sequence[Any], are_single: Sequence[bool]) -> Any:
    """Return the embeddings of several calls as one array, or as a list of rows where they differ.

    Args:
        embeddings: of each call, in the client's `output_fmt`.
        are_single: whether a call had one text, and so has no rows.

    """
    parts = [
        _as_rows(embedding) if is_single else embedding
        for embedding, is_single in zip(embeddings, are_single, strict=True)
    ]
    are_arrays = all(isinstance(part, np.ndarray) for part in parts)
    if are_arrays and len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts, axis=0)
    return [row for part in parts for row in part]


def _as_rows(row: Any) -> Any:
    return row[np.newaxis] if isinstance(row, np.ndarray) and row.ndim == 1 else [row]


def _checked_view(view: View | Mapping[str, Any]) -> View:
    if isinstance(view, View):  # anything may be in it
        view = {name: value for name, value in asdict(view).items() if value is not None}
    return View.parse(view)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def tokens_of(encoding: Encoding) -> Tokens:
    """Return the tokens of an encoding that was asked for them."""
    return Tokens(encoding.tokens, encoding.token_ids, encoding.segment_ids)
