"""The sentences that clients send: words drawn at random, from a file or from those here."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

_COMMON = """
the of and to in is that for it was on are as with his they at be this from have or by one had
not but what all were when we there can an your which their said if do will each about how up
out them then she many some so these would other into has more her two like him see time could
no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know get through back much before go good
new write our used me man too any day same right look think also around another came come work
three word must because does part even place well such here take why things help put years
different away again off went old number great tell men say small every found still between
name should home big give air line set own under read last never us left end along while might
next sound below saw something thought both few those always looked show large often together
asked house world going want school important until form food keep children feet land side
without boy once animals life enough took sometimes four head above kind began almost live
page got earth need far hand high year mother light parts country father let night following
picture being study second eyes soon times story boys since white days ever paper hard near
sentence better best across during today others however sure means knew try told young miles
sun ways thing whole hear example heard several change answer room sea against top turned
learn point city play toward five using himself usually
"""
COMMON_WORDS = tuple(_COMMON.split())

FEW_WORDS = 20
"""Fewer known words than that make no sentences: then all are used, in several tokens each."""

# real sentences: lognormal around 16 words, like what a worker calibrates with
TYPICAL_WORDS, SPREAD, MOST_WORDS = 16, 0.6, 126


def read_words(path: Path) -> tuple[str, ...]:
    """Return the different words of a text file.

    Raises:
        ValueError: it cannot be read, or has no word.

    """
    try:
        words = tuple(sorted(set(path.read_text("utf-8").split())))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not words:
        raise ValueError(f"{path} has no words in it")
    return words


def whole_words(words: Sequence[str], num_tokens: Sequence[int]) -> tuple[str, ...]:
    """Return those words that are one token to a model, or all if it knows next to none."""
    least = min(num_tokens)
    known = [word for word, count in zip(words, num_tokens, strict=True) if count == least]
    return tuple(known if len(known) >= FEW_WORDS else words)


def sentences(
    words: Sequence[str], count: int, *, length: int | None, longest: int, seed: int
) -> list[str]:
    """Return sentences of random words.

    Args:
        words: to choose from.
        count: how many sentences.
        length: words of each; None mixes lengths.
        longest: most words where lengths are mixed.
        seed: the same one gives the same sentences.

    """
    chance = random.Random(seed)  # noqa: S311  # no secret
    return [
        " ".join(chance.choices(words, k=length or _typical_length(chance, longest)))
        for _ in range(count)
    ]


def _typical_length(chance: random.Random, longest: int) -> int:
    drawn = int(chance.lognormvariate(math.log(TYPICAL_WORDS), SPREAD))
    return max(min(drawn, longest, MOST_WORDS), 1)
