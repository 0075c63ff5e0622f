"""What the scheduler has decided, as messages to workers and clients."""

from __future__ import annotations

from bert_serving.client.messages import ErrorAnswer

from .scheduling.events import AnswerError, Dispatch
from .worker_protocol import Batch


def batch(action: Dispatch, now: float) -> Batch:
    """Return what a worker is to compute, sent now."""
    queued_ms = [round(waited * 1000, 3) for waited in action.queued_s]
    return Batch(
        action.batch_id,
        action.payloads,
        queued_ms,
        sent_at=now,
        is_express=action.is_express,
        is_interruptible=action.is_interruptible,
    )


def error(action: AnswerError) -> ErrorAnswer:
    """Return what a client is told."""
    retry_after_ms = None
    if action.retry_after_s is not None:
        retry_after_ms = round(action.retry_after_s * 1000)
    return ErrorAnswer(action.request_id, action.code, action.message, retry_after_ms)
