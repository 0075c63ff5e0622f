"""Whether the files of keys that the options name can be used, and are private enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bert_serving.client.keys import KeyFileError, read_certificate, read_secret
from bert_serving.server.config import ServerConfig

from .finding import Finding, ok, problem, warning

ADVICE = "make keys with bert-serving-keygen"


FOLDERS = {"client_keys": "client", "worker_keys": "worker", "admin_keys": "administrator"}
"""The options for folders of public keys, and whose keys these are."""


def look_at_keys(config: ServerConfig) -> list[Finding]:
    """Check the server's own key, and those that it lets in."""
    if config.server_key is None:
        return []
    counts: dict[str, int] = {}
    try:
        read_secret(config.server_key)
        for option in FOLDERS:
            folder = getattr(config, option)
            if folder is None:
                continue
            keys = sorted(Path(folder).glob("*.key"))
            for key in keys:
                read_certificate(key)
            counts[option] = len(keys)
    except (KeyFileError, OSError) as error:
        return [problem("keys", str(error), ADVICE)]
    return [judge_keys(config.server_key, counts)]


def judge_keys(server_key: str, counts: Mapping[str, int]) -> Finding:
    """Return whether anybody could come in, by each folder that was named."""
    if empty := [option for option, number in counts.items() if number == 0]:
        whose = " or ".join(FOLDERS[option] for option in empty)
        seen = f"{server_key} is well, but no {whose} has a key in -{' or -'.join(empty)}"
        return warning("keys", seen, "copy their NAME.key there: until then none of them comes in")
    known = ", ".join(f"{number} {FOLDERS[option]} key(s)" for option, number in counts.items())
    return ok("keys", f"{server_key}, private; {known}")
