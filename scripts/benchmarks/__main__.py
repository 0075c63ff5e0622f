"""The command line of `scripts/bench`."""

from __future__ import annotations

import argparse
import sys

from bert_serving.server import exit_codes

from .check import check
from .embedded import compare_model
from .goals import GROUPS, show_goals
from .path import compare_path
from .rounds import ROUNDS


def main() -> int:
    """Measure what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--path", action="store_true", help="only what surrounds the model")
    parser.add_argument("--model", action="store_true", help="only the embedded model")
    parser.add_argument("--rows", type=int, default=4_000, help="sentences for the model")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare ratios with those kept: in about two minutes; fails if one is worse",
    )
    parser.add_argument(
        "--keep", action="store_true", help="measure the same, and keep it for this processor"
    )
    parser.add_argument(
        "--goals",
        nargs="*",
        choices=GROUPS,
        help="what the project wants to reach, measured beside it: all of it, or some groups",
    )
    args = parser.parse_args()
    if args.check or args.keep:
        return check(keep=args.keep)
    if args.goals is not None:
        return show_goals(args.goals or GROUPS)
    print(f"medians of {ROUNDS} rounds; last column: ratio to the first row")
    if not args.path:
        compare_model(args.rows)
    if not args.model:
        compare_path()
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
