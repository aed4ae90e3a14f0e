"""Read a masked reply: its words, and beside them the hospital's ε if the study is private."""

from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from federation.protocol import reasons
from federation.protocol.masked_replies import MASKED, WORDS
from federation.protocol.metric_allowlist import EPSILON, FIGURES
from federation.protocol.reply_validation import read_array
from models.refusal import Refusal


@dataclass(frozen=True)
class MaskedReply:
    """`words`: shape (words,). `epsilon`: of the run so far at this hospital; None if the study is not private."""

    words: NDArray[np.uint32]
    epsilon: float | None


def read_reply(reply: Message, *, words: int, is_private: bool) -> MaskedReply:
    """Return the content of a reply with this number of words.

    Raises Refusal: E_SITE_FAILED, E_REPLY_RECORDS, E_REPLY_SHAPE, E_REPLY_METRICS.
    """
    if reply.has_error() or not reply.has_content():
        raise Refusal(reasons.SITE_FAILED)
    content = reply.content
    if set(content) != {MASKED, "ledger", *({"metrics"} if is_private else ())}:
        raise Refusal(reasons.REPLY_RECORDS)
    found = words_in(content[MASKED], words)
    return MaskedReply(found, _epsilon(content["metrics"]) if is_private else None)


def words_in(record: object, words: int) -> NDArray[np.uint32]:
    """Return the masked words of a record, shape (words,). Raises Refusal: E_REPLY_RECORDS, E_REPLY_SHAPE."""
    if type(record) is not ArrayRecord or set(record) != {WORDS}:
        raise Refusal(reasons.REPLY_RECORDS)
    found = read_array(record[WORDS], np.broadcast_to(np.uint32(0), (words,)))
    if found is None:
        raise Refusal(reasons.REPLY_SHAPE)
    return found


def _epsilon(record: object) -> float:
    """Return the only figure of a record. Raises Refusal E_REPLY_METRICS."""
    value = record.get(EPSILON) if isinstance(record, MetricRecord) and set(record) == {EPSILON} else None
    limits = FIGURES["train"][EPSILON]
    if type(value) is not float or not limits.low <= value <= limits.high:
        raise Refusal(reasons.REPLY_METRICS)
    return value
