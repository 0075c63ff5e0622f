"""Server of bert-serving: a broker, a worker for each device, and their supervisor.

>>> args = get_args_parser().parse_args(["-model_dir", "bert-base-uncased"])  # doctest: +SKIP
>>> with BertServer(args) as server:                                           # doctest: +SKIP
...     BertClient(port=server.port).encode(["First do it"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .bert_server import BertServer, ServerStartError
    from .cli.options import get_args_parser

__all__ = ["BertServer", "ServerStartError", "__version__", "get_args_parser"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the server's own processes start with this module too."""
    if name in ("BertServer", "ServerStartError"):
        from . import bert_server

        return getattr(bert_server, name)
    if name == "get_args_parser":
        from .cli.options import get_args_parser

        return get_args_parser
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
