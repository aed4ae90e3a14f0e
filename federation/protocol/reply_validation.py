"""What one site's reply must be before it may count, and what of a refused one may be shown.

A reply comes from outside: its names, shapes, numbers and texts may be anything. Checked here is what is true
or false of a reply alone (`refusal_code`), whether its ledger goes on from where it was (`LedgerHead`), and its size
against the other sites' (`longest`).
"""

import math
import re
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
from federation.protocol.metric_allowlist import Figure
from models.refusal import Reason

EXAMPLES = "num-examples"  # Flower's own name for the weight of a reply

LEDGER = "ledger"  # the record in which a site's gateway tells how far its ledger has grown
_ARRAYS = ("arrays", "buffers", "moments", "looks")  # the records of arrays, as `Expected` names them
CALIBRATIONS = "calibrations"  # the record of a test's message in which the server tells the sites' calibrations
ABOUT = "site"  # the record in which a site tells of itself in the handshake

_SHA256 = re.compile(r"[0-9a-f]{64}")
# The longest update where no majority can tell what is usual, in lengths of the model: as much as a gateway allows.
_LENGTHS_ALONE = 2.0

Kept = TypeVar("Kept")  # what stays of a valid reply


@dataclass(frozen=True)
class LedgerHead:
    """The newest line of a site's ledger: its SHA-256 in hex digits, and how many lines lead to it; none: "" and 0.

    Kept at the server and sent back to the site, so that neither can cut off the ledger's end unnoticed.
    """

    head: str = ""
    lines: int = 0

    def follows(self, last: "LedgerHead") -> bool:
        """Whether a ledger that once ended in `last` may end in this one now: longer, or the same."""
        return self.lines > last.lines or self == last

    def config(self) -> dict[str, str | int]:
        """As a site is told of it."""
        return {"ledger-head": self.head, "ledger-lines": self.lines}


NO_HEAD = LedgerHead()


@dataclass(frozen=True)
class Expected:
    """What each reply of a round is compared with.

    `arrays` and `buffers` are the global model that was sent out; empty where none is to come back. `metrics` are
    the figures that a reply may bring, each within its range (a site with few patients leaves some out), besides the
    number of examples, which is 1 to `max_examples` and always there. `moments` and `looks` are arrays of the shapes of
    the `mean` and the `variance` that are to come back, if any. `about`: of a handshake alone, which brings no figures:
    whether a record is what a site tells of itself.
    """

    arrays: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    metrics: Mapping[str, Figure]
    max_examples: int
    moments: Mapping[str, NDArray] = field(default_factory=dict)
    looks: Mapping[str, NDArray] = field(default_factory=dict)
    about: Callable[[Mapping[str, object]], bool] | None = None


def encode(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Flower's record of named arrays, sorted by name.

    Several of Flower's strategies join arrays by their place and not by their name, so every record that they
    see has one order.
    """
    return ArrayRecord({name: Array(np.asarray(arrays[name])) for name in sorted(arrays)})


def decode(record: ArrayRecord) -> dict[str, NDArray]:
    """The arrays of a record of ours, or of one that `validate` has let through."""
    return {name: array.numpy() for name, array in record.items()}


@dataclass(frozen=True)
class Sifted(Generic[Kept]):
    """A round's answers by site: of those that count what was kept, of others the code, and the ledgers' new heads."""

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

    Each reply is judged as it comes, and is let go before the next; what stays of a valid one is what `keep` makes of
    it. An answer from a node that was not asked counts for nothing; the server's own errors for a lost node come as
    such. A head is taken from a refused reply as well: the site's ledger holds that reply too.
    """
    codes: dict[int, str | None] = dict.fromkeys(asked, reasons.SITE_MISSING.code)
    kept: dict[int, Kept] = {}
    heads: dict[int, LedgerHead] = {}
    heard: set[int] = set()
    for reply in replies:
        site = reply.metadata.src_node_id
        last = last_heads.get(site, NO_HEAD)
        if site in heard:
            codes[site] = reasons.REPLY_TWICE.code
            heads.pop(site, None)
        elif site in codes:
            heard.add(site)
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
    """The code for which a site's reply does not count, or None.

    `last_head`: how the site's ledger ended when it was last told of; a ledger that has become shorter since, or is
    no longer told of, has been cut.
    """
    if reply.has_error():
        return code_in(reply.error.reason)
    if reason := validate(reply, expected):
        return reason.code
    head = ledger_head(reply)
    return None if head and head.follows(last_head) else reasons.REPLY_LEDGER_CUT.code


def shows_itself(code: str) -> bool:
    """Whether a site that does not count for this reason sent something that no honest site sends.

    A site that is missing or reports a failure may be as honest as any.
    """
    return code.startswith("E_REPLY_") or code == reasons.UPDATE_NORM.code


def validate(reply: Message, expected: Expected) -> Reason | None:
    """Why this reply may not count, or None when it may.

    Flower's aggregation broadcasts wrong shapes silently, spreads NaN, believes any weight, and ends the
    whole run on an unknown name; so names, shapes, dtypes and numbers have to agree exactly with `expected`.
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
    """The array if it is of the shape and dtype of `like`, in its label as well as in its bytes."""
    if (array.dtype, tuple(array.shape)) != (str(like.dtype), like.shape):
        return None
    try:
        value = array.numpy()
    except Exception:  # whatever hostile bytes make numpy raise, they are not our array
        return None
    if not isinstance(value, np.ndarray):  # a zip archive loads as something that is no array
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
        if not isinstance(value, int | float) or not allowed.low <= value <= allowed.high:  # nor is NaN
            return reasons.REPLY_METRICS
    return None


def ledger_head(reply: Message) -> LedgerHead | None:
    """Where the site's ledger ends, empty if the reply does not tell; None if what it tells is none."""
    if not reply.has_content() or LEDGER not in reply.content:
        return NO_HEAD
    record = reply.content[LEDGER]
    if type(record) is not ConfigRecord or set(record) != {"head", "lines"}:
        return None
    head, lines = record["head"], record["lines"]
    if type(head) is not str or type(lines) is not int or not _SHA256.fullmatch(head) or lines < 1:
        return None
    return LedgerHead(head, lines)


def figures(reply: Message) -> dict[str, float]:
    """The metrics of a reply that `validate` has let through, the number of examples among them."""
    return {name: float(value) for name, value in reply.content.metric_records["metrics"].items()}  # type: ignore[arg-type]


def update_norm(new: Mapping[str, NDArray], old: Mapping[str, NDArray]) -> float:
    """Euclidean length of an update over all tensors but counters, summed in float64."""
    with np.errstate(over="ignore"):  # an overflow is an infinite norm, which `GuardedStrategy` refuses
        squares = (
            float(np.sum(np.square(new[name].astype(np.float64) - old[name]))) for name in old if not is_counter(name)
        )
        return math.sqrt(sum(squares))


def longest(norms: Iterable[float], factor: float, *, model_norm: float) -> float:
    """The length that no update of a round may exceed: `factor` times the low median of `norms`, which are finite.

    The low median keeps one huge norm among four from lifting the bound. What is longer is clipped and not refused, so
    that a hospital which takes many more steps than the others still counts, at the bound. Of two updates the bound is
    that many times the shorter: a hostile site can hold the model still, which shows in each round's report, but cannot
    replace it. Fewer than three updates are no majority, and may both be far too long: the bound is then also twice the
    length of the model that went out (`model_norm`), if that is not zero.
    """
    known = list(norms)
    bound = factor * statistics.median_low(known) if known else math.inf
    return bound if len(known) >= 3 else min(bound, _LENGTHS_ALONE * model_norm or math.inf)


def length(tensors: Mapping[str, NDArray]) -> float:
    """Euclidean length of tensors, counters left out."""
    return update_norm(tensors, {name: np.zeros((), array.dtype) for name, array in tensors.items()})
