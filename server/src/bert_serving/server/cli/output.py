"""Standard output of the commands: of any encoding, and for readers that leave."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bert_serving.server import exit_codes


@contextmanager
def printing() -> Iterator[None]:
    """Print what the encoding lacks as `?`; end the program where nobody reads any more."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            print(end="", flush=True)  # also where there is no standard output
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter would complain at its end
        sys.exit(exit_codes.FAILED)
