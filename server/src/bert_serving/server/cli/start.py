"""`bert-serving-start`: read the options, run the server."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bert_serving.server import supervisor
from bert_serving.server.cli.options import parse_args
from bert_serving.server.cli.output import printing


def main(argv: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; returns the exit status."""
    with printing():  # the help
        config = parse_args(argv)
    return supervisor.run(config)


if __name__ == "__main__":
    sys.exit(main())
