"""A server that belongs to a Python process: `BertServer` starts it, and it ends with its owner.

It is the same server as `bert-serving-start`'s, in a process of its own; only its settings
come on standard input, and what keeps it from starting goes to a file, for an exception.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from . import exit_codes, logs, preflight, supervisor
from .config import ServerConfig

WATCH_S = 0.5


def main() -> int:
    """Serve until told to stop or the owner is gone; returns the exit status."""
    owner, cause_file = int(sys.argv[1]), Path(sys.argv[2])
    settings = json.loads(sys.stdin.read())
    for name in ("pooling_layer", "device_map"):
        settings[name] = tuple(settings[name])
    config = ServerConfig(**settings)
    logs.set_up("server", verbose=config.verbose, log_format=config.log_format)
    threading.Thread(target=_end_after, args=(owner,), name="owner", daemon=True).start()
    try:
        return supervisor.serve(config)
    except preflight.CAUSES as error:
        cause_file.write_text(str(error), "utf-8")
        return exit_codes.BOOT_FAILED


def _end_after(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
