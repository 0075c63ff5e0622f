"""Starts one program, in whatever interpreter has its peer: `python programs NAME OPTIONS`.

OPTIONS is JSON with the fields of `lines.Options`. The folder becomes a package here, since
it is none where our packages are not installed, and leaves the path, so that its files
stand in nobody's way.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

PACKAGE = "bert_serving_peer_programs"


def main() -> None:
    """Run the program that the first argument names, until its owner is gone."""
    folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    lines = importlib.import_module(f"{PACKAGE}.lines")
    name, options = sys.argv[1], lines.Options(**json.loads(sys.argv[2]))
    lines.converse(lambda: importlib.import_module(f"{PACKAGE}.{name}"), options)


if __name__ == "__main__":
    main()
