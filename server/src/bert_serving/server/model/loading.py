"""The one door to models: from what the operator asked for to a replica that serves it.

It knows which module serves what, and nothing of how they do it. The fake replica is
loaded without importing torch; so this module may not import torch either.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .fake import FakeReplica
from .replica import ModelLoadError, Replica

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True)
class ReplicaConfig:
    """What to load, and how.

    Attributes:
        model_dir: a directory, a hub name, `fake:DIM`, or None for the embedded model.
        dtype: what to compute in: `float32`, `bfloat16`, `float16` (CUDA only), `int8` (CPU
            only: products of 8-bit integers, the rest bfloat16), or `auto` (float32 on a CPU,
            the fastest 16-bit type on CUDA).
        device: as torch names it, such as `cpu` or `cuda:0`.
        num_threads: CPU threads to compute with; None leaves it to torch.
        max_batch_tokens: tokens computed at a time; None measures what is best.
        max_seq_len: most tokens a row may have, special ones included; None is the model's
            own limit.
        mask_cls_sep: leave [CLS] and [SEP] out of pooling.
        lower_case: whether the tokenizer folds case; None is as the model's files say.
        tuned_model_dir: a directory with fine-tuned weights for the model of `model_dir`.
        ckpt_name: the name of a Google checkpoint's files.
        config_name: the name of a Google checkpoint's configuration.
        num_labels: labels of a classification head; None is as many as the checkpoint has.
        no_special_token: rows of tokens go in as they are, without [CLS] and [SEP].
        no_position_embeddings: add none.
        as_sentence_transformers: rows are read as sentence-transformers reads them, where the
            model's directory says how: cut at its maximum length, lower-cased if it does.
        compile: compile what is not hand-written.
        gpu_memory_fraction: share of a GPU's memory that may be taken; None is all.
        no_cuda_graphs: launch each operation, where small batches could be one launch.

    """

    model_dir: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    num_threads: int | None = None
    max_batch_tokens: int | None = None
    max_seq_len: int | None = None
    mask_cls_sep: bool = False
    lower_case: bool | None = None
    tuned_model_dir: str | None = None
    ckpt_name: str = "bert_model.ckpt"
    config_name: str = "bert_config.json"
    num_labels: int | None = None
    no_special_token: bool = False
    no_position_embeddings: bool = False
    as_sentence_transformers: bool = False
    compile: bool = False
    gpu_memory_fraction: float | None = None
    no_cuda_graphs: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no model can have.

        Raises:
            ModelLoadError: with what was got and what is allowed.

        """
        if self.dtype not in DTYPES:
            raise ModelLoadError(f"dtype={self.dtype!r}: expected one of {', '.join(DTYPES)}")
        for name in ("num_threads", "max_batch_tokens", "max_seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ModelLoadError(f"{name}={value}: expected at least 1")


def load_replica(config: ReplicaConfig) -> Replica:
    """Return the replica that a configuration asks for, ready to encode.

    Raises:
        ModelLoadError: it cannot be served; the message names the cause in one line.

    """
    if config.model_dir is not None and config.model_dir.startswith("fake:"):
        return FakeReplica.load(
            config.model_dir,
            max_length=config.max_seq_len,
            max_batch_tokens=config.max_batch_tokens,
        )
    _let_threads_yield()
    from .encoders import load_encoder_replica  # here, as torch takes seconds to import

    return load_encoder_replica(config)


def _let_threads_yield() -> None:
    """Have torch's threads wait for each other without burning the cores they wait for.

    GNU OpenMP spins for milliseconds unless told otherwise, a collapse where anything else
    wants a core: the broker, the tokenizer, another worker. The embedded model on two
    cores, in tokens/s, median of two runs each of long, short and no spinning: on a quiet
    machine 8,300, 7,400, 5,600; beside one busy process 1,500, 3,000, 3,700. So: for about as
    long as the next operation may take to come. A tenth of that, which was tried too, cost one
    sentence in bfloat16 4.3 ms instead of 3.5, and bulk a tenth. It is read when torch is
    loaded, hence before that; what the operator has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
