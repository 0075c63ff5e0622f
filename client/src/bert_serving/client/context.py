"""The ZeroMQ context of a process: one for all its clients, as long as it lives.

A context of a client's own would be garbage together with its sockets when that client is in a
reference cycle. Its end waits for all its sockets, and the garbage collector may well end it
before them: it would wait for ever. A socket that is garbage alone closes itself.
"""

from __future__ import annotations

import os
from typing import Any

import zmq

_contexts: dict[int, zmq.Context[Any]] = {}  # a child of a fork keeps its parent's, untouched


def process_context() -> zmq.Context[Any]:
    """Return the context of this process, which is never ended; a child of a fork has its own."""
    pid = os.getpid()
    if pid not in _contexts:
        context: zmq.Context[Any] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, context.get(zmq.SOCKET_LIMIT))  # descriptors are the limit
        if _contexts.setdefault(pid, context) is not context:  # another thread was faster
            context.term()
    return _contexts[pid]
