"""Write a BERT's weights as Google's code would: write_google_checkpoint.py (FROM TO NAME)...

FROM is a Hugging Face directory; TO gets `bert_config.json`, `vocab.txt` and the
checkpoint NAME, which has, as after a training, the optimizer's variables and the
pre-training's heads too. A process of its own, as TensorFlow should not share one with torch.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

OF_GOOGLES_CONFIG = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)


def google_variable(name: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a weight of transformers under Google's name, in Google's layout."""
    if name in ("classifier.weight", "classifier.bias"):
        return name.replace("classifier.", "output_").replace("weight", "weights"), weight
    path = "bert/" + name.removeprefix("bert.").replace("layer.", "layer_").replace(".", "/")
    if "LayerNorm" in path:
        return path.replace("/weight", "/gamma").replace("/bias", "/beta"), weight
    if "embeddings" in path:
        return path.removesuffix("/weight"), weight
    return path.replace("/weight", "/kernel"), weight.T


def training_variables(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a training leaves in a checkpoint beside the model."""
    slots = {
        f"{name}/{slot}": np.full_like(value, 7.0)
        for name, value in variables.items()
        for slot in ("adam_m", "adam_v")
    }
    hidden = variables["bert/embeddings/LayerNorm/gamma"].size
    return {
        **slots,
        "global_step": np.array(343, np.int64),
        "cls/predictions/output_bias": np.zeros(10, np.float32),
        "cls/seq_relationship/output_weights": np.zeros((2, hidden), np.float32),
        "cls/seq_relationship/output_bias": np.zeros(2, np.float32),
    }


def write(source: Path, out: Path, name: str) -> None:
    """Write one checkpoint, and what belongs to it."""
    out.mkdir(exist_ok=True)
    shutil.copy(source / "vocab.txt", out)
    config = json.loads((source / "config.json").read_text())
    google_config = {field: config[field] for field in OF_GOOGLES_CONFIG}
    (out / "bert_config.json").write_text(json.dumps(google_config))
    weights = load_file(source / "model.safetensors")
    variables = dict(google_variable(name, weight) for name, weight in weights.items())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for path, value in {**variables, **training_variables(variables)}.items():
            tf.compat.v1.get_variable(path, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(out / name))


if __name__ == "__main__":
    for number in range(1, len(sys.argv), 3):
        write(Path(sys.argv[number]), Path(sys.argv[number + 1]), sys.argv[number + 2])
