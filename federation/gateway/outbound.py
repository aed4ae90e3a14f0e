"""What a reply must be before anything of it leaves the site. Pure functions: they read, and refuse or not.

The reply's arrays are compared with those that came in, piece by piece, so that a model of any size needs little
memory. What passes here is all that leaves: names, shapes and figures are composed anew from it (`reply`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation import reasons
from federation.allowed import EPSILON, EXAMPLES_OF, FIGURES, LOSS, Kind
from federation.gateway.objects import ArrayHead, Content, chunk_body
from federation.gateway.patients import Patients
from federation.gateway.schema import ArraySpec, Schema
from federation.rounds.buffers import is_counter, is_variance
from models.refusal import Refusal

EXAMPLES = "num-examples"  # Flower's own name for the weight of a reply
_PIECE = 2**15  # elements looked at together: they stay in the processor's cache

ReadChunk = Callable[[str], bytes]  # an ArrayChunk by its id; KeyError or OSError if it is not there


@dataclass(frozen=True)
class Arrays:
    """Arrays by record and name, and where their chunks are read."""

    heads: Mapping[str, Mapping[str, ArrayHead]]
    read: ReadChunk


@dataclass(frozen=True)
class Rules:
    """What a reply is held against: the task it answers, and the site's own limits and patients."""

    kind: Kind
    schema: Schema
    came_in: Arrays
    patients: Patients
    min_patients: int
    max_update: float


def check_reply(content: Content, read: ReadChunk, rules: Rules) -> dict[str, float]:
    """The figures of a reply that may leave. `read` gives the chunks of its arrays.

    Raises Refusal: E_REPLY_RECORDS, E_REPLY_KEYS, E_REPLY_SHAPE, E_REPLY_DAMAGED, E_REPLY_NOT_FINITE,
    E_REPLY_VARIANCE, E_REPLY_COUNTER, E_REPLY_UPDATE, E_REPLY_METRICS, E_REPLY_EXAMPLES, E_REPLY_PATIENTS.
    """
    expected = {name: specs for name, specs in rules.schema.records.items() if rules.kind == "train"}
    _check_records(content, expected)
    figures = _check_figures(content.metrics["metrics"], rules)
    went_out = Arrays(content.arrays, read)
    for record, specs in expected.items():
        if record in content.arrays:
            _check_shapes(content.arrays[record], specs)
    if rules.kind == "train":
        _check_weights(went_out, rules)
        for name, spec in rules.schema.buffers.items():
            _check_buffer(name, spec, went_out, rules)
    return figures


def _check_records(content: Content, expected: Mapping[str, Mapping[str, ArraySpec]]) -> None:
    needed = {name for name, specs in expected.items() if specs}
    if content.configs or set(content.metrics) != {"metrics"} or not needed <= set(content.arrays) <= set(expected):
        raise Refusal(reasons.REPLY_RECORDS)


def _check_shapes(heads: Mapping[str, ArrayHead], specs: Mapping[str, ArraySpec]) -> None:
    if set(heads) != set(specs):
        raise Refusal(reasons.REPLY_KEYS)
    if not all(spec.fits(heads[name]) for name, spec in specs.items()):
        raise Refusal(reasons.REPLY_SHAPE)


# --- figures ----------------------------------------------------------------------------------------------


def _check_figures(metrics: Mapping[str, Any], rules: Rules) -> dict[str, float]:
    """Every figure is of the table, a finite number of its range, and over enough patients."""
    unspoken = {EPSILON} if rules.schema.private_round is None else {EPSILON, LOSS}
    known = {name: figure for name, figure in FIGURES[rules.kind].items() if name not in unspoken}
    if EXAMPLES not in metrics or not set(metrics) <= {*known, EXAMPLES}:
        raise Refusal(reasons.REPLY_METRICS)
    examples = metrics[EXAMPLES]
    here = rules.patients.of_split.get(EXAMPLES_OF[rules.kind], 0)
    if type(examples) is not int or not rules.min_patients <= examples <= here:
        raise Refusal(reasons.REPLY_EXAMPLES)
    for name in set(metrics) - {EXAMPLES}:
        value, figure = metrics[name], known[name]
        # NaN is between no two numbers.
        if type(value) not in (int, float) or not figure.low <= value <= figure.high:
            raise Refusal(reasons.REPLY_METRICS)
        if rules.patients.behind(figure) < rules.min_patients:
            raise Refusal(reasons.REPLY_PATIENTS)
    return {name: metrics[name] for name in (*known, EXAMPLES) if name in metrics}


# --- arrays -----------------------------------------------------------------------------------------------


def _check_weights(went_out: Arrays, rules: Rules) -> None:
    """Finite, and no further from the weights that came in than `max_update` lengths of those."""
    moved = length = 0.0
    for name, spec in rules.schema.arrays.items():
        for new, old in _pairs("arrays", name, spec, went_out, rules.came_in):
            old_wide = old.astype(np.float64)
            with np.errstate(over="ignore"):  # an update of infinite length is too long
                change = new.astype(np.float64) - old_wide
                moved += float(change @ change)
                length += float(old_wide @ old_wide)
    if not math.sqrt(moved) <= rules.max_update * math.sqrt(length):
        raise Refusal(reasons.REPLY_UPDATE)


def _check_buffer(name: str, spec: ArraySpec, went_out: Arrays, rules: Rules) -> None:
    """Finite; variances are not negative; a counter rises by one with each batch."""
    batches = rules.schema.local_epochs * rules.patients.of_split.get("train", 0)
    for new, old in _pairs("buffers", name, spec, went_out, rules.came_in):
        if is_variance(name) and (new < 0).any():
            raise Refusal(reasons.REPLY_VARIANCE)
        if is_counter(name) and not ((new >= old) & (new <= old + batches)).all():
            raise Refusal(reasons.REPLY_COUNTER)


def _pairs(
    record: str, name: str, spec: ArraySpec, went_out: Arrays, came_in: Arrays
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The values of one array, piece by piece: of the reply, and of what came in."""
    for new, old in zip(
        pieces(went_out.heads[record][name], spec, went_out.read),
        pieces(came_in.heads[record][name], spec, came_in.read),
        strict=True,
    ):
        if not np.isfinite(new).all():
            raise Refusal(reasons.REPLY_NOT_FINITE)
        yield new, old


def pieces(head: ArrayHead, spec: ArraySpec, read: ReadChunk) -> Iterator[NDArray[Any]]:
    """The values of an array in order, some at a time; its bytes are exactly those of a file of numpy's.

    Raises Refusal E_REPLY_DAMAGED where a chunk is missing, of another length, or begins otherwise.
    """
    dtype = np.dtype(spec.dtype)
    rest = b""  # of a value that two chunks share
    for number, (chunk, length) in enumerate(zip(head.chunks, spec.chunk_bytes(), strict=True)):
        data = _chunk_data(read, chunk, length, b"" if number else spec.header)
        data = memoryview(rest + bytes(data)) if rest else data
        whole = len(data) // dtype.itemsize * dtype.itemsize
        rest = bytes(data[whole:])
        for start in range(0, whole, _PIECE * dtype.itemsize):
            # Copied, so that whoever looks at it does not hold the whole chunk.
            yield np.frombuffer(data[start : min(whole, start + _PIECE * dtype.itemsize)], dtype).copy()
        del data  # before the next chunk is read


def _chunk_data(read: ReadChunk, chunk: str, length: int, beginning: bytes) -> memoryview:
    """What a chunk holds after its beginning. Raises Refusal E_REPLY_DAMAGED."""
    try:
        body = chunk_body(read(chunk))
    except (KeyError, OSError, ValueError) as error:
        raise Refusal(reasons.REPLY_DAMAGED, private=str(error)) from error
    if len(body) != length or body[: len(beginning)] != beginning:
        raise Refusal(reasons.REPLY_DAMAGED, private="not a file of numpy's as it should be")
    return body[len(beginning) :]
