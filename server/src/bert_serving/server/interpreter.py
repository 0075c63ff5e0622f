"""Running modules in fresh interpreters, whatever folder this process is in.

`python -m` looks for modules in the current folder first: a `secrets.py` or a `numpy` that lies
there, perhaps another user's, would be imported in place of the real one.
"""

from __future__ import annotations

import sys

_HAS_SAFE_PATH = hasattr(sys.flags, "safe_path")  # since Python 3.11
_WITHOUT_FOLDER = (
    "import runpy, sys; del sys.path[0]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours with arguments."""
    if _HAS_SAFE_PATH:
        return [sys.executable, "-P", "-m", module, *arguments]
    return [sys.executable, "-c", _WITHOUT_FOLDER, module, *arguments]
