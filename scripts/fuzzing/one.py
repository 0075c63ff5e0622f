"""Fuzzes one target in this process, guided by coverage of our code: for `run`.

Its first argument names the target; the others are libFuzzer's. It ends as libFuzzer does.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["bert_serving"]):
    import targets


def main() -> None:
    """Give the target inputs until libFuzzer ends the process."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: targets.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
