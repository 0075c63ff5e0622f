"""One log line an event on standard error; never a sentence's content."""

from __future__ import annotations

import logging
import sys


def set_up(role: str, *, verbose: bool) -> logging.Logger:
    """Return the logger of a process; every line names its role."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)-7s {role:<10} %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("bert_serving")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    return logger
