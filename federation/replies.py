"""What one site's reply must be before it may count, and what of a refused one may be shown.

A reply comes from outside: its names, shapes, numbers and texts may be anything. Checked here is what is true
or false of a reply alone (`refusal_code`), and its size against the other sites' (`outliers`).
"""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from federation import reasons
from federation.buffers import is_counter, is_variance
from models.refusal import Reason

EXAMPLES = "num-examples"  # Flower's own name for the weight of a reply

# All that may be taken over from an error that a site sends: a code of ours, with nothing before it.
_CODE = re.compile(r"[EW]_[A-Z_]{2,40}(?=\Z|[:\s])")


@dataclass(frozen=True)
class Expected:
    """What each reply of a round is compared with.

    `arrays` and `buffers` are the global model that was sent out. `metrics` are the names that a reply
    may bring (a site with few patients leaves some out) besides the number of examples, which is 1 to
    `max_examples` and always there.
    """

    arrays: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    metrics: frozenset[str]
    max_examples: int


def encode(arrays: Mapping[str, NDArray]) -> ArrayRecord:
    """Flower's record of named arrays, sorted by name.

    Several of Flower's strategies join arrays by their place and not by their name, so every record that they
    see has one order.
    """
    return ArrayRecord({name: Array(np.asarray(arrays[name])) for name in sorted(arrays)})


def decode(record: ArrayRecord) -> dict[str, NDArray]:
    """The arrays of a record of ours, or of one that `validate` has let through."""
    return {name: array.numpy() for name, array in record.items()}


def refusal_code(answers: Sequence[Message], expected: Expected) -> str | None:
    """The code for which a site's answers of one round do not count, or None for one valid reply."""
    if not answers:
        return reasons.SITE_MISSING.code
    if len(answers) > 1:
        return reasons.REPLY_TWICE.code
    if answers[0].has_error():
        return site_code(answers[0].error.reason)
    reason = validate(answers[0], expected)
    return reason.code if reason else None


def site_code(text: str | None) -> str:
    """The code at the start of an error's text, which may otherwise hold anything and is never passed on."""
    match = _CODE.match(text or "")
    return match.group() if match else reasons.SITE_FAILED.code


def validate(reply: Message, expected: Expected) -> Reason | None:
    """Why this reply may not count, or None when it may.

    Flower's aggregation broadcasts wrong shapes silently, spreads NaN, believes any weight, and ends the
    whole run on an unknown name; so names, shapes, dtypes and numbers have to agree exactly with `expected`.
    """
    if reply.has_error() or not reply.has_content():
        return reasons.SITE_FAILED
    content = reply.content
    tensors = {"arrays": expected.arrays} | ({"buffers": expected.buffers} if expected.buffers else {})
    kinds = dict.fromkeys(tensors, ArrayRecord) | {"metrics": MetricRecord}
    if set(content) != set(kinds) or any(type(content[name]) is not kind for name, kind in kinds.items()):
        return reasons.REPLY_RECORDS
    for name, current in tensors.items():
        if reason := _check_arrays(content.array_records[name], current):
            return reason
    return _check_metrics(content.metric_records["metrics"], expected)


def _check_arrays(record: ArrayRecord, current: Mapping[str, NDArray]) -> Reason | None:
    if set(record) != set(current):
        return reasons.REPLY_KEYS
    for name, like in current.items():
        value = _read(record[name], like)
        if value is None:
            return reasons.REPLY_SHAPE
        if not np.isfinite(value).all():
            return reasons.REPLY_NOT_FINITE
        if is_variance(name) and (value < 0).any():
            return reasons.REPLY_VARIANCE
    return None


def _read(array: Array, like: NDArray) -> NDArray | None:
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
    if not set(metrics) <= expected.metrics | {EXAMPLES}:
        return reasons.REPLY_METRICS
    examples = metrics.get(EXAMPLES)
    if type(examples) is not int or not 1 <= examples <= expected.max_examples:
        return reasons.REPLY_EXAMPLES
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values()):
        return reasons.REPLY_METRICS
    return None


def valid_figures(reply: Message, names: frozenset[str], max_examples: int) -> dict[str, float] | None:
    """The figures of a reply that holds nothing but allowed ones, as in `validate`; None for any other."""
    expected = Expected({}, {}, names, max_examples)
    if reply.has_error() or not reply.has_content() or set(reply.content) != {"metrics"}:
        return None
    record = reply.content["metrics"]
    if not isinstance(record, MetricRecord) or _check_metrics(record, expected) is not None:
        return None
    return {name: float(value) for name, value in record.items()}  # type: ignore[arg-type]


def update_norm(new: Mapping[str, NDArray], old: Mapping[str, NDArray]) -> float:
    """Euclidean length of an update over all tensors but counters, summed in float64."""
    with np.errstate(over="ignore"):  # an overflow is an infinite norm, which is refused
        squares = (
            float(np.sum(np.square(new[name].astype(np.float64) - old[name]))) for name in old if not is_counter(name)
        )
        return math.sqrt(sum(squares))


def outliers(norms: Mapping[int, float], factor: float) -> set[int]:
    """The sites whose update norm is infinite or above `factor` times the low median of all.

    With fewer than three finite norms there is no majority to compare with, and only infinite ones are named.
    The low median keeps one huge norm among four from lifting the bound.
    """
    finite = [norm for norm in norms.values() if math.isfinite(norm)]
    bound = factor * statistics.median_low(finite) if len(finite) >= 3 else math.inf
    return {site for site, norm in norms.items() if not math.isfinite(norm) or norm > bound}
