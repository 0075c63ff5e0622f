"""An encoder whose small micro-batches are one launch each: CUDA graphs of few shapes.

A hundred launches and their Python take a millisecond, in which a GPU could compute thousands
of tokens. So below `MOST_TOKENS` everything from the embeddings to the deepest layer needed
is captured once for a shape, and replayed. A shape is a number of tokens, of rows, and a
longest row, each rounded up: padding tokens belong to no row, and padding rows are empty
(equal row splits), so they cost next to nothing and change nothing. `torch.compile` was
refused: it takes minutes at the start and a C compiler, and still launches each kernel.

All graphs read the same inputs, write the same outputs, and share one pool of memory; they
run one after the other on one stream, so none can disturb another. Written from torch
2.13's documentation: it has not run on a GPU yet. On a CPU it is tested with a `capture`
that calls again what it should have captured.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .bert import BertEncoder
from .encoder import States, TokenBatch, Wanted
from .kernels_cuda import VarlenAttend, VarlenAttention
from .replica import BetweenLayers, nothing

logger = logging.getLogger(__name__)

MOST_TOKENS = 8192
"""Above, a GPU takes longer for the layers than their launches do (estimated, not measured)."""

_LEAST_TOKENS, _LEAST_ROWS, _LEAST_LONGEST = 64, 8, 128

# a graph is a few hundred kilobytes; what was not used for long is captured again if need be
_MOST_GRAPHS = 64

Run = Callable[[], object]
Capture = Callable[[Run], Run]


@dataclass(frozen=True)
class Shape:
    """What a graph was captured for: whatever is not more has room in it."""

    tokens: int
    rows: int
    longest: int

    @classmethod
    def of(cls, batch: TokenBatch) -> Shape:
        """Return the smallest shape that a micro-batch fits in.

        Tokens go up by halves and thirds, as they are all computed. Rows and the longest
        of them double: empty blocks of attention end at once, 128 tokens are one block.
        """
        power = _power_of_two(len(batch.ids), _LEAST_TOKENS)
        tokens = power * 3 // 4 if len(batch.ids) <= power * 3 // 4 else power
        last = batch.groups[-1]
        return cls(
            max(tokens, _LEAST_TOKENS),
            _power_of_two(last.row + last.rows, _LEAST_ROWS),
            _power_of_two(last.length, _LEAST_LONGEST),
        )


def _power_of_two(number: int, least: int) -> int:
    return max(1 << (number - 1).bit_length(), least)


class GraphedEncoder:
    """A `BertEncoder` that replays graphs where there are small micro-batches; see `Encoder`.

    A shape is computed as usual when it first comes, which also prepares what is prepared
    on first use, and captured when it comes again. If a capture fails, that is logged, and
    there are no graphs from then on.

    Args:
        encoder: what computes.
        device, dtype: where, and in which type.
        varlen: its attention, which reads the rows' splits on the device.
        capture: makes of a function one that does the same work again; None takes CUDA's.
        most_graphs: shapes that are kept, the last used ones.

    """

    def __init__(
        self,
        encoder: BertEncoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        varlen: VarlenAttend,
        capture: Capture | None = None,
        most_graphs: int = _MOST_GRAPHS,
    ) -> None:
        self._encoder = encoder
        self._device = device
        self._dtype = dtype
        self._varlen = varlen
        self._most_graphs = most_graphs
        self._capture = capture or _cuda_capture()
        # None for what has come once, and is not captured yet; least recently used first
        self._graphs: OrderedDict[tuple[Shape, frozenset[int]], Run | None] = OrderedDict()
        self._inputs = torch.zeros((3, MOST_TOKENS), dtype=torch.int64, device=device)
        self._splits = torch.zeros(MOST_TOKENS + 1, dtype=torch.int32, device=device)
        self._states: dict[int, torch.Tensor] = {}
        self._is_on = True

    @property
    def num_layers(self) -> int:
        """See `Encoder`."""
        return self._encoder.num_layers

    @property
    def hidden_size(self) -> int:
        """See `Encoder`."""
        return self._encoder.hidden_size

    @property
    def vocab_size(self) -> int:
        """See `Encoder`."""
        return self._encoder.vocab_size

    @property
    def num_segments(self) -> int:
        """See `Encoder`."""
        return self._encoder.num_segments

    @property
    def head_sizes(self) -> Mapping[str, int]:
        """See `Encoder`."""
        return self._encoder.head_sizes

    @property
    def num_graphs(self) -> int:
        """The graphs that there are."""
        return sum(graph is not None for graph in self._graphs.values())

    def forward(
        self,
        batch: TokenBatch,
        wanted: Wanted,
        *,
        between_layers: BetweenLayers = nothing,
    ) -> States:
        """Return what is wanted; see `Encoder`.

        The states of a graph are overwritten by the next one: on a stream, whatever reads
        them is launched before.
        """
        needed = self._encoder.layers_for(wanted)
        graph = self._graph_for(batch, needed)
        if graph is None:
            return self._encoder.forward(batch, wanted, between_layers=between_layers)
        # not after it: what is computed then would overwrite its states
        between_layers()
        shape, replay = graph
        self._fill(batch, shape)
        replay()
        return self._encoder.answer(batch, self._states, wanted)

    def _graph_for(self, batch: TokenBatch, layers: frozenset[int]) -> tuple[Shape, Run] | None:
        """Return the graph for a micro-batch; None if it is to be computed without one."""
        if not self._is_on or batch.segments is None or len(batch.ids) > MOST_TOKENS:
            return None
        shape = Shape.of(batch)
        key = shape, layers
        is_known = key in self._graphs
        graph = self._graphs.setdefault(key, None)
        self._graphs.move_to_end(key)
        if graph is None and is_known:
            graph = self._graphs[key] = self._try_capture(shape, layers)
        while len(self._graphs) > self._most_graphs:
            self._graphs.popitem(last=False)
        return None if graph is None else (shape, graph)

    def _try_capture(self, shape: Shape, layers: frozenset[int]) -> Run | None:
        """Return a graph; if there is none to be had, there will be no other either."""
        try:
            return self._capture_shape(shape, layers)
        except RuntimeError as error:  # torch's for all that CUDA refuses, and for no memory
            cause = " ".join(str(error).split())[:200]
        self._is_on = False
        self._graphs.clear()
        self._states.clear()
        logger.warning("no CUDA graphs from now on, small batches are slower: %s", cause)
        return None

    def _capture_shape(self, shape: Shape, layers: frozenset[int]) -> Run:
        for number in layers - self._states.keys():
            self._states[number] = torch.zeros(
                (MOST_TOKENS, self.hidden_size), dtype=self._dtype, device=self._device
            )
        self._inputs.zero_()
        self._splits.zero_()
        attend = VarlenAttention(
            self._splits[: shape.rows + 1],
            shape.longest,
            self._encoder.config.num_heads,
            self._varlen,
        )

        def run() -> None:
            inputs = self._inputs[:, : shape.tokens].unbind()
            states = self._encoder.hidden_states(inputs, attend, layers)
            # a copy each, so that no graph keeps memory of the pool to itself
            for number, state in states.items():
                self._states[number][: shape.tokens].copy_(state)

        return self._capture(run)

    def _fill(self, batch: TokenBatch, shape: Shape) -> None:
        """Put a micro-batch where graphs read it, with empty rows and padding behind it."""
        assert batch.segments is not None
        tokens = len(batch.ids)
        for line, part in zip(
            self._inputs, (batch.ids, batch.segment_ids, batch.positions), strict=True
        ):
            line[:tokens].copy_(part)
        self._inputs[:, tokens : shape.tokens].zero_()
        splits = batch.segments.splits
        self._splits[: len(splits)].copy_(splits)
        self._splits[len(splits) : shape.rows + 1].fill_(tokens)


def _cuda_capture() -> Capture:
    """Return what captures CUDA graphs that share one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Run) -> Run:
        run()  # whatever a library does at its first call for a shape must not be captured
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # what other threads do meanwhile is their own business
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                run()
        finally:
            torch.cuda.set_stream(stream)  # torch leaves its own behind when a capture fails
        return graph.replay

    return capture
