"""`BertClient`: blocking calls, safe to share between threads, and to use after a fork.

A call that is waited for borrows a connection from the `pool`; what goes on without a
caller is moved by a thread in the `background`. A child of a fork gets its own of both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from . import listening, options
from .assembly import Encoding, Tokens
from .background import Background
from .broadcasts import Broadcast
from .connected import ConnectedClient
from .pending import BatchStream, DoneCall, PendingCalls, Response
from .servers import check_one_server
from .view import View


class BertClient(ConnectedClient):
    """A client of one `bert-serving-start` server, or of several.

    Args:
        ip: the server's host name or address.
        port: its native port (`-port`).
        port_out: accepted for bert-as-service's sake; there is only one port now.
        output_fmt: `ndarray`, or `list` for nested Python lists.
        show_server_config: print the server's settings when connected.
        identity: a name for this client, shown in the server's log and to those who get
            its broadcasts; it need not be unique.
        check_version: accepted; versions are always checked, by the protocol.
        check_length: warn (`TruncationWarning`) when rows were cut.
        check_token_info: accepted; tokens can always be asked for.
        ignore_all_checks: do not wait for the server in the constructor, and do not warn.
        timeout: milliseconds that a call waits for the next answer (a long call gets many);
            -1 for no limit. The time that an iterator takes for its rows is not counted,
            nor that for which a call waits for its turn while others of this client are answered.
        connect_timeout: milliseconds to wait for the server's first word.
        pair_separator: a text that contains it is a pair, as with bert-as-service's `" ||| "`;
            among tokens, the token that it is without blanks. None: only tuples are pairs.
        server_key: the server's public key: its file, or the 40 characters in it. The connection
            is then encrypted, and nobody else can answer in that server's place. Of several
            servers, a list may have the key of each.
        client_cert: the file with this client's own secret key, whose public half is in the
            server's `-client_keys` folder; goes with `server_key`.
        servers: several servers of the same model, each `HOST:PORT`, instead of `ip` and `port`.
            Requests go to the one with the least to do; those of a server that is lost, stopping
            or overloaded go to another one.
        hedge_after: milliseconds after which a request that is not answered is sent to another
            server too; the first answer counts. None: never.

    Raises:
        ServerUnreachable: nothing that speaks the protocol answered in `connect_timeout`.
        ModelMismatch: the servers do not serve the same.
        ProtocolError: the server speaks another version.

    All calls may raise `RequestTimeout`, `ServerUnreachable`, `ProtocolError` and the
    `ServerError`s of `bert_serving.client.errors`; a wrong argument is a `TypeError` or
    `ValueError`, raised before anything is sent.

    """

    def encode(
        self,
        texts: Any,
        blocking: bool = True,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        *,
        layers: int | Iterable[int] | None = None,
        layer_reduce: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        dims: int | None = None,
        dtype: Any = None,
        max_length: int | None = None,
        on_empty: str = "encode",
        pair_separator: str | None = None,
        group: str | None = None,
        show_progress_bar: bool = False,
    ) -> Any:
        """Return the embeddings of texts.

        Args:
            texts: one str, or any iterable of rows (a list, an iterator, a NumPy array or
                pandas Series of str); a pair of texts is a tuple. With `is_tokenized`, a row
                is a list of tokens, a pair a tuple of two lists.
            blocking: wait for the answer; otherwise return None at once, and `fetch` or
                `fetch_all` have it.
            is_tokenized: the rows are tokens, which are only looked up in the vocabulary.
            show_tokens: also return the tokens of each row.
            layers: which hidden states, numbered as transformers' `hidden_states`; this and
                the options that follow are the server's own choice where they are None.
            layer_reduce: join several layers by `concat`, `sum` or `mean`.
            pooling: `mean`, `max`, `mean_max`, `first`, `last`, or `none` for a vector a token;
                bert-as-service's names (`REDUCE_MEAN`, `CLS_TOKEN`, …) mean the same.
            normalize: scale each vector to length 1.
            dims: keep only the first so many dimensions.
            dtype: `float32` or `float16`.
            max_length: tokens a row, special ones included; longer rows are cut.
            on_empty: `encode` a blank row as [CLS] [SEP], or raise an `error`.
            pair_separator: the client's own if None.
            group: send a copy of the answer to the members of this broadcast group, see
                `listen`; an iterator is drawn to its end first, as they are told its length.
            show_progress_bar: of a blocking call: show rows, rate and time left on standard error.

        Returns:
            `[rows, dim]`, or `[dim]` for a single str. With pooling `none`, a list of arrays
            `[tokens of the row, dim]`, or one such array for a single str. With
            `show_tokens`, a tuple of that and the token strings of each row.

        """
        encode_options = options.embedding_options(
            layers=layers,
            layer_reduce=layer_reduce,
            pooling=pooling,
            normalize=normalize,
            dims=dims,
            dtype=dtype,
            is_tokenized=is_tokenized,
            show_tokens=show_tokens,
            max_length=max_length,
            on_empty=on_empty,
            pair_separator=pair_separator or self._pair_separator,
            group=group,
            sender=self._sender,
        )
        if not blocking:
            self._submit(self._own_process().pending, encode_options, texts)
            return None
        encoding = self._encode(texts, encode_options, show_progress_bar)
        if self._warn_if_cut:
            options.warn_if_cut(encoding, stacklevel=2)
        values = options.formatted(encoding.views[options.EMBEDDING], self.output_fmt)
        return (values, encoding.tokens) if show_tokens else values

    def fetch(self, delay: float = 0.0) -> Iterator[Response]:
        """Yield the answers to all `encode(blocking=False)`, in the order of their arrival.

        The calls that wait to be fetched are the client's: threads that share it share them.

        Args:
            delay: seconds to wait before the first is fetched.

        Yields:
            `Response(id, embedding, tokens)`, until nothing is pending. The error of a call is
            raised in its place; another `fetch` goes on with the others.

        """
        time.sleep(delay)
        pending = self._own_process().pending
        while (done := pending.take()) is not None:
            yield self._response(done)

    def fetch_all(self, sort: bool = True, concat: bool = False) -> Any:
        """Return the answers to all `encode(blocking=False)`.

        Args:
            sort: in the order in which they were sent, not that of their arrival.
            concat: all in one: an array of all rows, or a list of them where they are lists
                (`output_fmt="list"`) or of different widths.

        Returns:
            A list with the embeddings of each call; None if nothing is pending. If a call has
            ended with an error, that is raised, and another `fetch_all` has the others.

        """
        taken = self._own_process().pending.take_all()
        if not taken:
            return None
        if sort:
            taken.sort(key=lambda done: done.id)
        embeddings = [self._response(done).embedding for done in taken]
        if not concat:
            return embeddings
        return options.joined(embeddings, [done.call.is_single for done in taken])

    def encode_async(
        self,
        batch_generator: Iterable[Any],
        max_num_batch: int | None = None,
        delay: float = 0.1,
        **kwargs: Any,
    ) -> BatchStream:
        """Encode batches while a generator still makes others; for as long as it likes.

        The generator runs in a thread of its own, and is drawn from only a bounded number of
        rows ahead of the answers that are taken.

        Args:
            batch_generator: yields what `encode` takes.
            max_num_batch: stop after so many batches.
            delay: seconds to wait before the first answer is fetched.
            **kwargs: as for `encode`, the same for each batch; `blocking` and
                `show_progress_bar` mean nothing here.

        Returns:
            An iterator of `Response(id, embedding, tokens)` in the order of their arrival; the
            ids tell the order of sending. An error of one batch is raised in its place, and
            the iteration may go on; an error of the generator is raised at the end.

        """
        for meaningless in ("blocking", "show_progress_bar"):
            kwargs.pop(meaningless, None)
        kwargs["pair_separator"] = kwargs.get("pair_separator") or self._pair_separator
        encode_options = options.embedding_options(**kwargs, sender=self._sender)
        pending = PendingCalls()
        stream = BatchStream(pending, self._response, partial(time.sleep, delay))
        self._own_process().streams.add(stream)
        batches = islice(batch_generator, max_num_batch or None)
        pending.feed(batches, partial(self._submit, pending, encode_options))
        return stream

    def join(self, group: str) -> None:
        """Become a member of a broadcast group: `listen` then yields what others send to it.

        A group is one server's: a client of several can't be in any. It is there while it has
        members. Anybody may join it, and anybody may send to it.
        Members of a server that is restarted are members again within seconds.

        Args:
            group: its name, 1 to 64 characters.

        """
        check_one_server(self.endpoints)
        name = options.group_name(group)
        listening.join(self._own_process().background(), name, self._timeout_s)

    def leave(self, group: str) -> None:
        """End being a member; what has come already can still be read."""
        check_one_server(self.endpoints)
        name = options.group_name(group)
        listening.leave(self._own_process().background(), name, self._timeout_s)

    def listen(self, timeout: float | None = None) -> Iterator[Broadcast]:
        """Yield what other clients send to the groups that this one is in, whole calls.

        They arrive also while nobody listens; up to 1,000 calls and 256 MiB are kept, then the
        oldest are dropped (`BroadcastWarning`). What this client sends does not come back.

        Args:
            timeout: end after so many milliseconds without one; None for the client's own
                `timeout`, -1 to go on for ever.

        Yields:
            `Broadcast(group, sender, embedding, tokens)`.

        """
        check_one_server(self.endpoints)
        timeout_s = self._timeout_s if timeout is None else options.seconds("timeout", timeout)
        background = self._own_process().background()
        if not background.fleet.only.groups and not background.fleet.only.broadcasts:
            raise ValueError("this client is in no group: join() one first")
        return self._broadcasts(background, timeout_s)

    def encode_detailed(
        self,
        texts: Any,
        views: Mapping[str, View | Mapping[str, Any]] | None = None,
        *,
        is_tokenized: bool = False,
        show_tokens: bool = False,
        max_length: int | None = None,
        on_empty: str = "encode",
        pair_separator: str | None = None,
        show_progress_bar: bool = False,
    ) -> Encoding:
        """Return several views of texts at once, with all that the server says about them.

        Args:
            texts: as for `encode`.
            views: named views, each a `View` or a dict of its fields; None asks for the
                server's default view, named `embedding`.
            is_tokenized: as for `encode`.
            show_tokens: also answer tokens, their ids and segment ids.
            max_length: as for `encode`.
            on_empty: as for `encode`.
            pair_separator: as for `encode`.
            show_progress_bar: as for `encode`.

        Returns:
            An `Encoding`; for a single str each of its values is that of the only row.

        """
        if views is None:
            views = {options.EMBEDDING: View()}
        encode_options = options.encode_options(
            views=views,
            is_tokenized=is_tokenized,
            max_length=max_length,
            show_tokens=show_tokens,
            on_empty=on_empty,
            pair_separator=pair_separator or self._pair_separator,
        )
        return self._encode(texts, encode_options, show_progress_bar)

    def tokenize(
        self,
        texts: Any,
        *,
        is_tokenized: bool = False,
        max_length: int | None = None,
        pair_separator: str | None = None,
    ) -> Tokens:
        """Return the tokens, vocabulary ids and segment ids of texts, as the model reads them.

        Args:
            texts: as for `encode`.
            is_tokenized: as for `encode`.
            max_length: as for `encode`.
            pair_separator: as for `encode`.

        Returns:
            `Tokens(tokens, ids, segment_ids)`: each a list with an entry a row, or that
            entry alone for a single str.

        """
        encode_options = options.encode_options(
            views={},
            is_tokenized=is_tokenized,
            max_length=max_length,
            show_tokens=True,
            pair_separator=pair_separator or self._pair_separator,
        )
        return options.tokens_of(self._encode(texts, encode_options))

    def _broadcasts(self, background: Background, timeout_s: float) -> Iterator[Broadcast]:
        while (found := listening.next_broadcast(background, timeout_s)) is not None:
            yield found._replace(embedding=options.formatted(found.embedding, self.output_fmt))

    def _response(self, done: DoneCall) -> Response:
        """Return the answer to a call that was not waited for, or raise its error."""
        encoding = options.finished_encoding(done.call, done.fleet)
        if self._warn_if_cut:
            options.warn_if_cut(encoding, stacklevel=3)
        values = options.formatted(encoding.views[options.EMBEDDING], self.output_fmt)
        return Response(done.id, values, encoding.tokens or "")


class ConcurrentBertClient(BertClient):
    """bert-as-service's client for threads; `BertClient` itself is one now.

    Args:
        max_concurrency: blocking calls at a time; more wait their turn, and time out.
        **kwargs: as for `BertClient`.

    """

    def __init__(self, max_concurrency: int = 10, **kwargs: Any) -> None:
        if type(max_concurrency) is not int or max_concurrency < 1:
            raise ValueError(f"max_concurrency={max_concurrency!r}: expected an int of at least 1")
        self.max_concurrency = self._max_connections = max_concurrency
        super().__init__(**kwargs)
