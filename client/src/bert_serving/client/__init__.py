"""Client of bert-serving: send sentences, get embeddings as NumPy arrays.

>>> with BertClient() as bc:                                  # doctest: +SKIP
...     vectors = bc.encode(["First do it", "then do it right"])
"""

from .aio import AsyncBertClient
from .assembly import Encoding, Tokens
from .broadcasts import Broadcast
from .client import BertClient, ConcurrentBertClient
from .listening import BroadcastWarning
from .options import TruncationWarning
from .pending import Response
from .version import __version__
from .view import View

__all__ = [
    "AsyncBertClient",
    "BertClient",
    "Broadcast",
    "BroadcastWarning",
    "ConcurrentBertClient",
    "Encoding",
    "Response",
    "Tokens",
    "TruncationWarning",
    "View",
    "__version__",
]
