"""Any encoder of transformers as an `Encoder`: what is no BERT, and so has no packed path.

transformers computes on padded rows. So a micro-batch is cut where padding would be too
much of it, each part is padded and computed with a mask, and what comes back is flat again.
Every layer is computed, whichever are asked for: transformers cannot stop before.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .device import compiler_needed
from .encoder import States, TokenBatch, Wanted
from .packing import Group, padded_parts
from .quiet_transformers import quiet_transformers
from .replica import BetweenLayers, ModelLoadError, nothing
from .transformers_model import LoadedModel

logger = logging.getLogger(__name__)

# padding that a part may have, as a share of its tokens, once it has this many
_PADDING_SHARE = 0.25
_LEAST_TOKENS = {"cpu": 64, "cuda": 2048}

# Rows are padded to a multiple of this, as libraries prepare and keep a kernel for each shape:
# on a CPU in bfloat16 that halved the memory (0.7 GB, not 1.3) and doubled the rate (measured).
_WIDTH_STEP = 8

# what two ways to compute the same may differ by, relative to the largest value
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


class TransformersEncoder:
    """A model of transformers on one device, in one type.

    Args:
        loaded: the model, with its weights.
        device: where to compute.
        max_length: the most tokens a row can have, padding included.
        compile: compile its forward pass, which takes a C compiler.

    Raises:
        ModelLoadError: it has no hidden state for each token and layer, or cannot be compiled.

    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        device: torch.device,
        max_length: int,
        compile: bool = False,  # noqa: A002  the option's name
    ) -> None:
        self._model = loaded.model.to(device)
        self._config = self._model.config
        self._device = device
        self._max_length = max_length
        self._inputs = set(inspect.signature(self._model.forward).parameters)
        self._pooled: torch.Tensor | None = None
        if loaded.has_pooler:
            self._model.base_model.register_forward_hook(self._keep_pooled)
        self._run: Callable[..., Any] = self._model
        self._is_padded = False
        with quiet_transformers():
            self._num_layers, self._hidden_size, self._head_sizes = self._probe()
            if compile:
                self._compile()

    @property
    def num_layers(self) -> int:
        """See `Encoder`."""
        return self._num_layers

    @property
    def hidden_size(self) -> int:
        """See `Encoder`."""
        return self._hidden_size

    @property
    def vocab_size(self) -> int:
        """See `Encoder`."""
        return int(self._config.vocab_size)

    @property
    def num_segments(self) -> int:
        """See `Encoder`."""
        if "token_type_ids" not in self._inputs:
            return 0
        return int(getattr(self._config, "type_vocab_size", 0) or 0)

    @property
    def head_sizes(self) -> Mapping[str, int]:
        """See `Encoder`."""
        return self._head_sizes

    def forward(
        self,
        batch: TokenBatch,
        wanted: Wanted,
        *,
        between_layers: BetweenLayers = nothing,
    ) -> States:
        """Return what is wanted; see `Encoder`."""
        parts = []
        for groups in self._parts(batch.groups):
            parts.append(self._compute(batch, groups))
            between_layers()
        states = {
            layer: torch.cat([part.layers[layer] for part in parts])
            for layer in wanted.layers | wanted.firsts
        }
        return States(
            {layer: states[layer] for layer in wanted.layers},
            {layer: batch.firsts(states[layer]) for layer in wanted.firsts},
            {head: torch.cat([part.heads[head] for part in parts]) for head in wanted.heads},
        )

    def _parts(self, groups: Sequence[Group]) -> Sequence[Sequence[Group]]:
        if not self._is_padded:
            return [[group] for group in groups]
        return padded_parts(groups, _PADDING_SHARE, _LEAST_TOKENS[self._device.type])

    def _compute(self, batch: TokenBatch, groups: Sequence[Group]) -> States:
        """Compute groups that follow each other, padded to the longest row of them."""
        tokens = slice(groups[0].token, groups[-1].end)
        positions = batch.positions[tokens]
        rows = (positions == 0).cumsum(0) - 1
        width = groups[-1].length
        if self._is_padded:
            width = min(-(-width // _WIDTH_STEP) * _WIDTH_STEP, self._max_length)
        shape = (sum(group.rows for group in groups), width)

        def padded(values: torch.Tensor, padding: int) -> torch.Tensor:
            out = torch.full(shape, padding, device=self._device)
            out[rows, positions] = values
            return out

        inputs = {"input_ids": padded(batch.ids[tokens], self._padding_id())}
        if "attention_mask" in self._inputs:
            inputs["attention_mask"] = padded(torch.ones_like(positions), 0)
        if self.num_segments:
            inputs["token_type_ids"] = padded(batch.segment_ids[tokens], 0)
        output = self._run(**inputs, output_hidden_states=True)
        states = self._states_of(output, shape)
        return States(_Flat(states, rows, positions), heads=self._heads_of(output))

    def _padding_id(self) -> int:
        padding_id = getattr(self._config, "pad_token_id", None)
        return padding_id if isinstance(padding_id, int) and padding_id >= 0 else 0

    def _states_of(self, output: Any, shape: tuple[int, int]) -> Sequence[torch.Tensor]:
        states = getattr(output, "hidden_states", None) or ()
        if {state.shape for state in states} != {(*shape, self._config.hidden_size)}:
            raise ModelLoadError(
                f"{type(self._model).__name__} does not give a hidden state for each layer and "
                "token: it cannot be served"
            )
        return tuple(states)

    def _heads_of(self, output: Any) -> dict[str, torch.Tensor]:
        values = {"pooler": self._pooled, "logits": getattr(output, "logits", None)}
        return {name: value.float() for name, value in values.items() if value is not None}

    def _keep_pooled(self, _model: Any, _inputs: Any, output: Any) -> None:
        self._pooled = getattr(output, "pooler_output", None)

    @torch.inference_mode()
    def _probe(self) -> tuple[int, int, dict[str, int]]:
        """Return the numbers of layers and dimensions, and the heads' widths, by trying it.

        Finds out as well whether padding changes what a row is. A model may take a mask and
        mix padding into its rows all the same, by a convolution for one: then only rows of
        equal length are computed together.
        """
        batch = self._made_up_rows(3, 7)
        try:
            alone = [self._compute(batch, [group]) for group in batch.groups]
        except (RuntimeError, TypeError, ValueError) as error:
            dtype = str(self._model.dtype).removeprefix("torch.")
            raise ModelLoadError(
                f"{type(self._model).__name__} cannot be computed in {dtype}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        if "attention_mask" in self._inputs:
            self._is_padded = True
            together = self._compute(batch, batch.groups)
            self._is_padded = all(
                _is_same(state, torch.cat([row.layers[layer] for row in alone]))
                for layer, state in together.layers.items()
            )
            if not self._is_padded:
                logger.info("padding would change this model's results: rows go by equal length")
        state = alone[0].layers[0]
        heads = {name: value.shape[1] for name, value in alone[0].heads.items()}
        return len(alone[0].layers) - 1, state.shape[1], heads

    @torch.inference_mode()
    def _compile(self) -> None:
        self._run = torch.compile(self._model, dynamic=True)
        batch = self._made_up_rows(3, 8)
        with compiler_needed():
            # one row and several are compiled apart
            for groups in [*([group] for group in batch.groups), *self._parts(batch.groups)]:
                self._compute(batch, groups)

    def _made_up_rows(self, *lengths: int) -> TokenBatch:
        """Return rows of so many tokens each, ascending."""
        ids = torch.arange(sum(lengths), device=self._device) + self._padding_id() + 1
        positions = [torch.arange(length, device=self._device) for length in lengths]
        starts = [sum(lengths[:number]) for number in range(len(lengths))]
        return TokenBatch(
            ids % self.vocab_size,
            torch.zeros_like(ids),
            torch.cat(positions),
            [
                Group(number, start, 1, length)
                for number, (start, length) in enumerate(zip(starts, lengths, strict=True))
            ],
        )


class _Flat(Mapping[int, torch.Tensor]):
    """Hidden states of padded rows without their padding; made flat when one is asked for."""

    def __init__(
        self, states: Sequence[torch.Tensor], rows: torch.Tensor, positions: torch.Tensor
    ) -> None:
        self._states = states
        self._rows = rows
        self._positions = positions

    def __getitem__(self, layer: int) -> torch.Tensor:
        return self._states[layer][self._rows, self._positions]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._states)))

    def __len__(self) -> int:
        return len(self._states)


def _is_same(state: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = _TOLERANCES[expected.dtype] * expected.abs().max()
    return bool(((state - expected).abs() <= tolerance).all())
