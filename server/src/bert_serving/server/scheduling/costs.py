"""What a request will cost, and how long the queue will take: guesses that are corrected.

The broker never tokenizes, so the scheduler counts in estimated tokens: so many a byte,
plus the two that frame each row. Workers report what it really was, and both the tokens a
byte and the rate of service follow, as exponential moving averages. It knows nothing of
requests, clients or workers: numbers in, numbers out.
"""

from __future__ import annotations

MIN_RETRY_S = 0.05
MAX_RETRY_S = 5.0

LONG_BYTES_PER_TOKEN = 16.0  # a row with more for each token it may have is taken to be cut
TOKENS_PER_CUT_BYTE = 1 / 128  # what is cut off is not computed, but has to be sent and read

_FRAME_TOKENS = 2  # [CLS] and [SEP]
_SMOOTHING = 0.1  # the weight of the newest batch
_START_TOKENS_PER_BYTE = 0.25  # English prose is near it
_MIN_TOKENS_PER_BYTE = 1 / 16  # however many rows were truncated
_MAX_TOKENS_PER_BYTE = 2.0
_START_TOKENS_PER_S = 5_000.0


class CostModel:
    """Estimates tokens from bytes, and waiting times from tokens.

    Attributes:
        max_row_tokens: a longer row is truncated by the workers, so it costs hardly more.
        tokens_per_byte: the estimate in use.

    """

    __slots__ = ("_batch_seconds", "_batch_tokens", "max_row_tokens", "tokens_per_byte")

    def __init__(self) -> None:
        self.max_row_tokens = 512
        self.tokens_per_byte = _START_TOKENS_PER_BYTE
        self._batch_tokens = _START_TOKENS_PER_S
        self._batch_seconds = 1.0

    @property
    def tokens_per_s(self) -> float:
        """What one worker does in a second while it has work."""
        return self._batch_tokens / self._batch_seconds

    def estimate(self, rows: int, nbytes: int) -> float:
        """Return how many tokens a request will have; never 0, so that nothing is free.

        What will be cut off counts a little, too: a worker reads it, at the cost of others.
        """
        tokens = nbytes * self.tokens_per_byte + _FRAME_TOKENS * rows
        most = rows * self.max_row_tokens
        cut_bytes = max(nbytes - most * LONG_BYTES_PER_TOKEN, 0)
        return max(1.0, min(tokens, most) + cut_bytes * TOKENS_PER_CUT_BYTE)

    def learn_size(self, rows: int, nbytes: int, tokens: int) -> None:
        """Take in the tokens that rows turned out to have.

        Rows that were all truncated should be left out: they say nothing of the ratio.
        """
        if nbytes <= 0:
            return
        seen = (tokens - _FRAME_TOKENS * rows) / nbytes
        ratio = self.tokens_per_byte + _SMOOTHING * (seen - self.tokens_per_byte)
        self.tokens_per_byte = min(max(ratio, _MIN_TOKENS_PER_BYTE), _MAX_TOKENS_PER_BYTE)

    def learn_rate(self, tokens: float, seconds: float) -> None:
        """Take in how long a worker was busy with a batch.

        Tokens and seconds are averaged apart: the mean of quotients would let one tiny
        batch weigh as much as a full one.
        """
        self._batch_tokens += _SMOOTHING * (tokens - self._batch_tokens)
        self._batch_seconds += _SMOOTHING * (seconds - self._batch_seconds)
        self._batch_seconds = max(self._batch_seconds, 1e-6)

    def retry_after_s(self, tokens: float, workers: int) -> float:
        """Return how long so many workers need for so many tokens, within sane bounds."""
        if workers == 0:
            return MAX_RETRY_S
        wait_s = tokens / max(self.tokens_per_s * workers, 1e-6)
        return min(max(wait_s, MIN_RETRY_S), MAX_RETRY_S)
