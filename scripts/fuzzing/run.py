"""Feeds every target with inputs: `run.py RUNS SEED [TARGET ...]`.

Prints how many inputs each has taken, and fails on anything but a refusal, on an input that
takes ten seconds or two gigabytes. What coverage finds is kept for the run alone.
"""

from __future__ import annotations

import argparse
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from targets import TARGETS

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parents[1] / "tests" / "fuzz" / "corpus"
LIMITS = ("-max_len=2048", "-timeout=10", "-rss_limit_mb=2048")


def fuzz(target: str, runs: int, seed: int) -> tuple[int, str]:
    """Return how many inputs a target has taken, and what went wrong, if something did."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as found:
        command = [
            *(sys.executable, str(HERE / "one.py"), target),
            *(f"-runs={runs}", f"-seed={seed}", "-print_final_stats=1", *LIMITS),
            *(f"-artifact_prefix={found}/", found, str(CORPUS / target)),
        ]
        process = subprocess.run(command, capture_output=True, text=True, errors="replace")
        taken = re.search(r"stat::number_of_executed_units:\s*(\d+)", process.stderr)
        number = int(taken[1]) if taken else 0
        if process.returncode == 0 and number >= runs:
            return number, ""
        crashes = [path.read_bytes() for path in Path(found).glob("*-*")]  # crash-…, timeout-…
        return number, f"{process.stdout}{process.stderr}\ninputs: {crashes!r}"


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=100_000, help="inputs a target")
    parser.add_argument("seed", type=int, nargs="?", default=secrets.randbelow(1 << 31))
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="target")
    return parser.parse_args()


def main() -> int:
    """Fuzz what the command line names; returns the exit status."""
    told = arguments()
    print(f"{told.runs:,} inputs a target, seed {told.seed}")
    total, is_fine = 0, True
    for target in told.targets:
        started = time.monotonic()
        number, problem = fuzz(target, told.runs, told.seed)
        total += number
        verdict = "FAILED" if problem else "read or refused"
        print(f"{target:14}{number:>12,}{time.monotonic() - started:>8.0f} s  {verdict}")
        if problem:
            is_fine = False
            print(problem)
        sys.stdout.flush()
    verdict = "nothing but answers and refusals" if is_fine else "not only refusals"
    print(f"{total:,} inputs: {verdict}")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
