"""What a GPU has and a CPU has not: `varlen_attn` in plain operations, and graphs as tapes."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bert_serving.server.model.bert import BertEncoder
from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.cuda_graphs import GraphedEncoder
from bert_serving.server.model.encoder_replica import EncoderReplica
from bert_serving.server.model.families import find_family
from bert_serving.server.model.heads import find_heads
from bert_serving.server.model.kernels_cuda import CudaKernels

CPU = torch.device("cpu")


def plain_varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, num_splits=None
):
    """Attend over cumulative lengths, as `torch.nn.attention.varlen.varlen_attn` does on a GPU.

    What that leaves unwritten is NaN here: tokens of no row, and those beyond `max_q`. Like
    it, this reads the lengths on the device: no Python depends on them.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert num_splits == 1
    tokens = torch.arange(len(query), dtype=torch.int32)
    rows = torch.searchsorted(cu_seq_q, tokens, right=True)
    position = tokens - cu_seq_q[rows - 1]
    is_unwritten = (rows == len(cu_seq_q)) | (position >= max_q)
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float())
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(rows[:, None] != rows[None, :], -torch.inf)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value.float().nan_to_num())
    return mixed.masked_fill(is_unwritten[:, None, None], torch.nan).to(query.dtype)


class Captures:
    """A `capture` of `GraphedEncoder`: makes tapes, and knows how often each was played."""

    def __init__(self):
        self.played = []

    def __call__(self, run):
        tape = Tape()
        with tape:
            run()
        number = len(self.played)
        self.played.append(0)

        def replay():
            self.played[number] += 1
            tape.replay()

        return replay


class Tape(TorchDispatchMode):
    """The operations of a block with the memory that they read and wrote, to be done again.

    As in a CUDA graph, Python is not run again, and every result is where it was at first.
    """

    def __init__(self):
        super().__init__()
        self._operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        read = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        is_view = any(tensor.untyped_storage().data_ptr() in read for tensor in _tensors(result))
        if operation._schema.is_mutable or not is_view:
            self._operations.append((operation, args, kwargs or {}, result))
        return result

    def replay(self):
        for operation, args, kwargs, result in self._operations:
            again = operation(*args, **kwargs)
            if not operation._schema.is_mutable:
                for tensor, new in zip(_tensors(result), _tensors(again), strict=True):
                    tensor.copy_(new)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def as_on_cuda(replica, directory, capture=None, *, max_batch_tokens=512, **options):
    """Return a replica like another one, with all that a GPU gets but the GPU."""
    checkpoint = find_checkpoint(directory and str(directory))
    settings = checkpoint.read_config()
    family = find_family(settings)
    plan, weights = family.parse_config(settings), family.rename(checkpoint.read_weights())
    encoder = BertEncoder(
        plan,
        weights,
        device=CPU,
        dtype=torch.float32,
        kernels=CudaKernels(CPU, plain_varlen_attn),
        heads=find_heads(weights, settings, plan.hidden_size, CPU),
    )
    if capture is not None:
        encoder = GraphedEncoder(
            encoder,
            device=CPU,
            dtype=torch.float32,
            varlen=plain_varlen_attn,
            capture=capture,
            **options,
        )
    return EncoderReplica(
        encoder,
        replica._tokenizer,
        replica.info,
        recipe=replica._recipe,
        label_activation=replica._label_activation,
        has_segments=True,
        max_batch_tokens=max_batch_tokens,
    )
