"""Whether the files of keys that the options name can be used, and are private enough."""

from __future__ import annotations

from pathlib import Path

from bert_serving.client.keys import KeyFileError, read_certificate, read_secret
from bert_serving.server.config import ServerConfig

from .finding import Finding, ok, problem, warning

ADVICE = "make keys with bert-serving-keygen"


def look_at_keys(config: ServerConfig) -> list[Finding]:
    """Check the server's own key, and those of its clients."""
    if config.server_key is None:
        return []
    try:
        read_secret(config.server_key)
        keys = sorted(Path(config.client_keys).glob("*.key")) if config.client_keys else []
        for key in keys:
            read_certificate(key)
    except (KeyFileError, OSError) as error:
        return [problem("keys", str(error), ADVICE)]
    return [judge_keys(config.server_key, len(keys))]


def judge_keys(server_key: str, num_clients: int) -> Finding:
    """Return whether anybody could come in."""
    if num_clients == 0:
        seen = f"{server_key} is well, but no client has a key in -client_keys"
        return warning("keys", seen, "copy the clients' NAME.key there: until then nobody comes in")
    return ok("keys", f"{server_key}, private; {num_clients} client key(s)")
