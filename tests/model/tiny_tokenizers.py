"""Small tokenizers of the three kinds that models have, trained on a few sentences."""

from __future__ import annotations

import json
import shutil

from model_reference import TEXTS
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AlbertTokenizer, DebertaV2Tokenizer, RobertaTokenizer, XLMRobertaTokenizer

from bert_serving.server.model.checkpoint import find_checkpoint

SENTENCES = [text for text in TEXTS if isinstance(text, str) and text.strip()]


def save_tokenizer(kind, directory):
    """Write a tokenizer's files into a directory."""
    if kind == "word_piece":
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copy(find_checkpoint(None).directory / name, directory)
    else:
        _TRAINED[kind]().save_pretrained(directory)


def byte_level():
    """RoBERTa's: `<s> A </s></s> B </s>`."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocab, merges = _trained_bpe(tokens)
    return RobertaTokenizer(vocab=vocab, merges=merges)


def unigram():
    """XLM-R's: `<s> A </s></s> B </s>`."""
    return XLMRobertaTokenizer(vocab=_trained_unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))


def albert():
    """ALBERT's: `[CLS] A [SEP] B [SEP]`."""
    tokens = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return AlbertTokenizer(vocab=_trained_unigram(tokens), do_lower_case=True)


def deberta():
    """DeBERTa's: `[CLS] A [SEP] B [SEP]`."""
    return DebertaV2Tokenizer(vocab=_trained_unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"]))


def _trained_bpe(special):
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _trained_unigram(special):
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Metaspace()
    unknown = next(token for token in special if "unk" in token.lower())
    trainer = UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]


_TRAINED = {"byte_level": byte_level, "unigram": unigram, "albert": albert, "deberta": deberta}
