"""What needs a CUDA device: skipped without one. The checks are those of `tests/model`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
sys.path.insert(0, str(Path(__file__).parent.with_name("model")))

import pytest
import torch
from model_reference import TEXTS, Reference
from transformers import BertModel, BertTokenizerFast

from bert_serving.server.model.checkpoint import find_checkpoint
from bert_serving.server.model.loading import ReplicaConfig, load_replica

DEVICE = "cuda:0"


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="this torch finds no CUDA device"))


@pytest.fixture(scope="session")
def load():
    def load(model_dir=None, **options):
        options = {"max_batch_tokens": 4096, "device": DEVICE, **options}
        return load_replica(ReplicaConfig(model_dir=model_dir and str(model_dir), **options))

    return load


@pytest.fixture(scope="session")
def states():
    """The hidden states of TEXTS on the CPU, a list of arrays [layers + 1, tokens, hidden]."""
    directory = find_checkpoint(None).directory
    reference = Reference(
        BertModel.from_pretrained(directory, dtype=torch.float32),
        BertTokenizerFast.from_pretrained(directory),
    )
    return reference.hidden_states(TEXTS)
