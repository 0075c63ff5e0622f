"""`bert-serving-start`: read the options, run the server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bert_serving.server import supervisor
from bert_serving.server.cli.options import parse_args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; returns the exit status."""
    return supervisor.run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
