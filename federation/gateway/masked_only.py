"""The last check before a reply is sent of a study that masks: it holds masked words, and nothing else.

In a study with summed answers a reply to training also holds the model, and the number of patients.

It depends on none of the code that masks: it reads the composed objects and the chunks as they will be sent. A fault
there, or a kind of reply that somebody forgot to mask, ends in a refusal.
"""

from collections.abc import Mapping

import numpy as np

from federation.gateway import reasons
from federation.gateway.flower_objects import ArrayHead, Content, ReadChunk, compose_names, object_id, read_content
from federation.gateway.flower_objects import compose as compose_object
from federation.gateway.reply import Records
from federation.gateway.reply_checks import pieces
from federation.gateway.schema import ArraySpec, Schema
from federation.protocol.masked_replies import MASKED, WORDS
from federation.protocol.metric_allowlist import EPSILON, EXAMPLES, FIGURES, HANDSHAKE, Kind
from models.refusal import Refusal

# The kinds of tasks whose replies describe patients.
MASKED_KINDS = frozenset(FIGURES) - {HANDSHAKE}
# Pearson's chi-squared of the bytes of random words is 255 on average; it exceeds this once in 10^40 replies. Words
# whose masks were left out exceed it by far, because the changes of most weights are small.
_MOST_UNEVEN = 700.0
_BYTE_VALUES = 256


def check_masked(kind: Kind, records: Records, read: ReadChunk, schema: Schema, *, is_private: bool = False) -> None:
    """Require that a reply of this kind leaves only as masked words, if the study says so.

    Their bytes must be as even as those of random words. `is_private`: whether the site's ε, a single number, leaves
    beside them. `read` reads the chunks as they will be sent. Raises Refusal: E_REPLY_UNMASKED; E_REPLY_DAMAGED if a
    chunk is missing.
    """
    if not schema.summed or kind not in MASKED_KINDS:
        return
    content, beside = _content(records), {EPSILON} if is_private else set()
    arrays, may_lack = {MASKED}, set()
    if kind == "train" and not schema.secure:
        beside, arrays = beside | {EXAMPLES}, {MASKED, *schema.model}
        may_lack = {MASKED, *(name for name, specs in schema.model.items() if not specs)}
    figures = {"metrics": beside} if beside else {}
    is_alone = arrays - may_lack <= set(content.arrays) <= arrays and set(records.names) <= arrays | set(figures)
    if not is_alone or {name: set(record) for name, record in content.metrics.items()} != figures or content.configs:
        raise Refusal(reasons.REPLY_UNMASKED, private="other records than the masked one")
    if MASKED in content.arrays:
        _check_words(content.arrays[MASKED], read)


def _check_words(heads: Mapping[str, ArrayHead], read: ReadChunk) -> None:
    if set(heads) != {WORDS}:
        raise Refusal(reasons.REPLY_UNMASKED, private="other arrays than the masked words")
    head = heads[WORDS]
    if head.dtype != "uint32" or len(head.shape) != 1:
        raise Refusal(reasons.REPLY_UNMASKED, private="the masked record has another form")
    counts = np.zeros(_BYTE_VALUES, np.int64)
    for words in pieces(head, ArraySpec(head.dtype, head.shape[0]), read):
        counts += np.bincount(words.view(np.uint8), minlength=_BYTE_VALUES)
    expected = counts.sum() / _BYTE_VALUES
    if not ((counts - expected) ** 2).sum() <= _MOST_UNEVEN * expected:
        raise Refusal(reasons.REPLY_UNMASKED, private="the words are not as even as masked ones")


def _content(records: Records) -> Content:
    """Read the records from their objects, as the server will."""
    names = compose_names("RecordDict", records.names)
    root = compose_object("Message", [object_id(names)], b"")
    objects: Mapping[str, bytes] = {**records.objects, object_id(names): names, object_id(root): root}
    return read_content(object_id(root), objects, reasons.REPLY_UNMASKED)
