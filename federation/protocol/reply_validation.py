"""Check a site's reply at the server before it counts, and reduce a refused one to a code.

A reply is untrusted: its names, shapes, numbers and texts may be anything. This module checks a reply by itself
(`refusal_code`), whether its ledger continues from the last known line (`LedgerHead`), and its length against those of
the other sites (`longest`).
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from numpy.typing import NDArray

from federation.protocol import reasons
from federation.protocol.batch_norm import is_counter, is_variance
from federation.protocol.error_codes import code_in
from federation.protocol.metric_allowlist import EXAMPLES, Figure
from federation.system.digests import SHA256
from models.refusal import Reason

LEDGER = "ledger"  # the record in which a site's gateway reports the head of its ledger
_ARRAYS = ("arrays", "buffers", "moments", "looks")  # the records of arrays, as `Expected` names them
CALIBRATIONS = "calibrations"  # the record of a test in which the server sends the sites' calibrations
ABOUT = "site"  # the record in which a site describes itself in the handshake

# Limit of an update, in lengths of the model, if too few sites form a majority; a gateway's limit is the same.
_LENGTHS_ALONE = 2.0

Kept = TypeVar("Kept")  # what `sift` keeps of a valid reply


@dataclass(frozen=True)
class LedgerHead:
    """The newest line of a site's ledger: its SHA-256 in hex digits, and the number of lines; "" and 0 if empty.

    The server keeps it and sends it back to the site, so that neither can cut off the ledger's end unnoticed.
    """

    head: str = ""
    lines: int = 0

    def follows(self, last: "LedgerHead") -> bool:
        """Tell whether a ledger that once ended in `last` may now end in this head: longer, or unchanged."""
        return self.lines > last.lines or self == last

    def config(self) -> dict[str, str | int]:
        """Return the head as settings of a message to the site."""
        return {"ledger-head": self.head, "ledger-lines": self.lines}


NO_HEAD = LedgerHead()


@dataclass(frozen=True)
class Expected:
    """What each reply of a round is compared with.

    `arrays` and `buffers` are the global model that was sent; empty if no model is expected back. `metrics` are the
    figures that a reply may contain, each within its range; a site with few patients omits some. The number of examples
    is always required, from 1 to `max_examples`. `moments` and `looks` are arrays with the shapes of the expected
    `mean` and `variance`, if any. `about`: for a handshake only, which has no figures: checks whether a record is a
    valid description of a site.
    """

    arrays: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    metrics: Mapping[str, Figure]
    max_examples: int
    moments: Mapping[str, NDArray] = field(default_factory=dict)
    looks: Mapping[str, NDArray] = field(default_factory=dict)
    about: Callable[[Mapping[str, object]], bool] | None = None


def encode(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Encode named arrays as Flower's record, sorted by name.

    Several of Flower's strategies match arrays by position, not by name, so every record must have the same order.
    """
    return ArrayRecord({name: Array(np.asarray(arrays[name])) for name in sorted(arrays)})


def decode(record: ArrayRecord) -> dict[str, NDArray]:
    """Return the arrays of our own record, or of one that `validate` accepted."""
    return {name: array.numpy() for name, array in record.items()}


@dataclass(frozen=True)
class Sifted(Generic[Kept]):
    """A round's replies by site: what was kept of valid ones, the code of others, and the new heads of ledgers."""

    valid: dict[int, Kept]
    refused: dict[int, str]
    heads: dict[int, LedgerHead]


def sift(
    replies: Iterable[Message],
    asked: Iterable[int],
    expected: Expected,
    last_heads: Mapping[int, LedgerHead],
    keep: Callable[[Message], Kept],
) -> Sifted[Kept]:
    """Sort the replies of the sites that were asked, in the order of `asked`.

    Each reply is checked as it arrives, and released before the next; of a valid one, only the result of `keep` stays.
    Replies from nodes that were not asked are ignored; the server's own errors for lost nodes arrive as replies. A head
    is also taken from a refused reply, because the site's ledger holds that reply too.
    """
    codes: dict[int, str | None] = dict.fromkeys(asked, reasons.SITE_MISSING.code)
    kept: dict[int, Kept] = {}
    heads: dict[int, LedgerHead] = {}
    answered: set[int] = set()
    for reply in replies:
        site = reply.metadata.src_node_id
        last = last_heads.get(site, NO_HEAD)
        if site in answered:
            codes[site] = reasons.REPLY_TWICE.code
            heads.pop(site, None)
        elif site in codes:
            answered.add(site)
            codes[site] = refusal_code(reply, expected, last)
            if codes[site] is None:
                kept[site] = keep(reply)
            head = ledger_head(reply)
            if head and head != NO_HEAD and head.follows(last):
                heads[site] = head
        del reply
    valid = {site: kept[site] for site, code in codes.items() if code is None}
    return Sifted(valid, {site: code for site, code in codes.items() if code is not None}, heads)


def refusal_code(reply: Message, expected: Expected, last_head: LedgerHead = NO_HEAD) -> str | None:
    """Return the code for which a site's reply does not count, or None.

    `last_head`: the end of the site's ledger as last reported. A ledger that is now shorter, or is no longer reported,
    has been cut.
    """
    if reply.has_error():
        return code_in(reply.error.reason)
    if reason := validate(reply, expected):
        return reason.code
    head = ledger_head(reply)
    return None if head and head.follows(last_head) else reasons.REPLY_LEDGER_CUT.code


def shows_itself(code: str) -> bool:
    """Tell whether this code means that the site sent something that no honest site sends.

    A site that is missing or reports a failure may be honest.
    """
    return code.startswith("E_REPLY_") or code == reasons.UPDATE_NORM.code


def validate(reply: Message, expected: Expected) -> Reason | None:
    """Return the reason why this reply may not count, or None.

    Flower's aggregation silently broadcasts wrong shapes, propagates NaN, accepts any weight, and ends the whole run on
    an unknown name. Names, shapes, dtypes and numbers must therefore agree exactly with `expected`.
    """
    if reply.has_error() or not reply.has_content():
        return reasons.SITE_FAILED
    content = reply.content
    tensors = {name: arrays for name in _ARRAYS if (arrays := getattr(expected, name))}
    values: dict[str, type] = {ABOUT: ConfigRecord} if expected.about else {"metrics": MetricRecord}
    kinds = dict.fromkeys(tensors, ArrayRecord) | values
    if set(content) - {LEDGER} != set(kinds) or any(type(content[name]) is not kind for name, kind in kinds.items()):
        return reasons.REPLY_RECORDS
    if ledger_head(reply) is None:
        return reasons.REPLY_LEDGER
    for name, current in tensors.items():
        if reason := _check_arrays(content.array_records[name], current):
            return reason
    if expected.about:
        return None if expected.about(content.config_records[ABOUT]) else reasons.HANDSHAKE
    return _check_metrics(content.metric_records["metrics"], expected)


def _check_arrays(record: ArrayRecord, current: Mapping[str, NDArray]) -> Reason | None:
    if set(record) != set(current):
        return reasons.REPLY_KEYS
    for name, like in current.items():
        value = read_array(record[name], like)
        if value is None:
            return reasons.REPLY_SHAPE
        if not np.isfinite(value).all():
            return reasons.REPLY_NOT_FINITE
        if (is_variance(name) or name == "variance") and (value < 0).any():
            return reasons.REPLY_VARIANCE
    return None


def read_array(array: Array, like: NDArray) -> NDArray | None:
    """Return the array if its label and its bytes both have the shape and dtype of `like`; else None."""
    if (array.dtype, tuple(array.shape)) != (str(like.dtype), like.shape):
        return None
    try:
        value = array.numpy()
    except Exception:  # whatever numpy raises on hostile bytes, they are not our array
        return None
    if not isinstance(value, np.ndarray):  # a zip archive loads as something that is not an array
        return None
    return value if (value.dtype, value.shape) == (like.dtype, like.shape) else None


def _check_metrics(metrics: MetricRecord, expected: Expected) -> Reason | None:
    if not set(metrics) <= {*expected.metrics, EXAMPLES}:
        return reasons.REPLY_METRICS
    examples = metrics.get(EXAMPLES)
    if type(examples) is not int or not 1 <= examples <= expected.max_examples:
        return reasons.REPLY_EXAMPLES
    for name, allowed in expected.metrics.items():
        value = metrics.get(name, allowed.low)
        if not isinstance(value, int | float) or not allowed.low <= value <= allowed.high:  # NaN is refused too
            return reasons.REPLY_METRICS
    return None


def ledger_head(reply: Message) -> LedgerHead | None:
    """Return the head of the site's ledger, empty if not reported; None if the record is invalid."""
    if not reply.has_content() or LEDGER not in reply.content:
        return NO_HEAD
    record = reply.content[LEDGER]
    if type(record) is not ConfigRecord or set(record) != {"head", "lines"}:
        return None
    head, lines = record["head"], record["lines"]
    if type(head) is not str or type(lines) is not int or not SHA256.fullmatch(head) or lines < 1:
        return None
    return LedgerHead(head, lines)


def figures(reply: Message) -> dict[str, float]:
    """Return the metrics of a reply that `validate` accepted, including the number of examples."""
    return {name: float(value) for name, value in reply.content.metric_records["metrics"].items()}  # type: ignore[arg-type]


def update_norm(new: Mapping[str, NDArray], old: Mapping[str, NDArray]) -> float:
    """Return the Euclidean length of an update over all tensors except counters, summed in float64."""
    with np.errstate(over="ignore"):  # an overflow gives an infinite length, which `GuardedStrategy` refuses
        total = 0.0
        for name in old:
            if not is_counter(name):
                change = np.atleast_1d(np.subtract(new[name], old[name], dtype=np.float64))
                total += float(np.sum(np.square(change, out=change)))  # in place: it may be large
        return math.sqrt(total)


def longest(norms: Iterable[float], factor: float, *, model_norm: float) -> float:
    """Return the limit of an update's length: `factor` times the low median of `norms`, which are finite.

    The low median keeps one huge norm among four from raising the limit. A longer update is clipped, not refused, so
    that a hospital which takes many more steps than the others still counts. With two updates, the limit is a multiple
    of the shorter one: a hostile site can then slow the model down, which each round's report shows, but cannot replace
    it. Fewer than three updates form no majority, and both may be far too long. The limit is then also at most twice
    the length of the model that was sent (`model_norm`), if that is not zero.
    """
    known = list(norms)
    bound = factor * statistics.median_low(known) if known else math.inf
    return bound if len(known) >= 3 else min(bound, _LENGTHS_ALONE * model_norm or math.inf)


def length(tensors: Mapping[str, NDArray]) -> float:
    """Return the Euclidean length of tensors, without counters."""
    return update_norm(tensors, {name: np.zeros((), array.dtype) for name, array in tensors.items()})
