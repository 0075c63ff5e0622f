"""Real weights and tiny random ones, against transformers, without a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch
from model_reference import TEXTS, Reference
from tiny_models import save_tiny_model
from transformers import BertModel, BertTokenizerFast

from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.device import cpu_lack
from bert_serving.server.model.loading import ReplicaConfig, load_replica


def skip_unless_cpu_has(dtype):
    """Skip a test of a type that the processor it runs on does not compute in."""
    if (lack := cpu_lack(dtype)) is not None:
        pytest.skip(f"{dtype} on this CPU: {lack}")


@pytest.fixture(scope="session")
def embedded_dir():
    return find_checkpoint(None).directory


@pytest.fixture(scope="session")
def load():
    def load(model_dir=None, **options):
        # one thread: threads that wait for each other crawl where other tests use the cores
        options = {"max_batch_tokens": 1024, "num_threads": 1, **options}
        skip_unless_cpu_has(options.get("dtype", "auto"))
        return load_replica(ReplicaConfig(model_dir=model_dir and str(model_dir), **options))

    return load


@pytest.fixture(scope="session")
def replica(load):
    return load()


@pytest.fixture(scope="session")
def reference(embedded_dir):
    torch.set_num_threads(1)
    return Reference(
        BertModel.from_pretrained(embedded_dir, dtype=torch.float32),
        BertTokenizerFast.from_pretrained(embedded_dir),
    )


@pytest.fixture(scope="session")
def states(reference):
    """The hidden states of TEXTS, a list of arrays [layers + 1, tokens, hidden]."""
    return reference.hidden_states(TEXTS)


@pytest.fixture
def tiny_dir(tmp_path):
    """A factory of directories with a tiny random model and a tokenizer of a kind."""

    def make(model_class=BertModel, tokenizer="word_piece", **config):
        return save_tiny_model(tmp_path, model_class, tokenizer, **config)

    return make
