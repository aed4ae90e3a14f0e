"""Check a reply before any part of it leaves the site. Pure functions that raise a Refusal or return the values.

They compare the reply's arrays with the received ones in pieces, so that a model of any size needs little memory. Only
what passes here leaves: `reply` composes new names, shapes and figures from it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord
from numpy.typing import NDArray

from federation.gateway import reasons
from federation.gateway.batch_norm_bounds import could_follow, steps_of_round
from federation.gateway.figure_checks import check_figures
from federation.gateway.flower_objects import ArrayHead, Arrays, Content, ReadChunk, chunk_body
from federation.gateway.schema import TRAINING, ArraySpec, Schema, Specs
from federation.gateway.summed_checks import check_summands
from federation.protocol import reasons as protocol_reasons
from federation.protocol.batch_norm import MEAN, VARIANCE, is_counter, is_variance
from federation.protocol.coarse_moments import RANGES
from federation.protocol.handshake import is_answer
from federation.protocol.metric_allowlist import HANDSHAKE, Kind, withheld_figures
from federation.protocol.patient_counts import Patients
from federation.protocol.reply_validation import ABOUT
from federation.protocol.summed_answers import SUMMED
from models.refusal import Refusal

PIECE_LENGTH = 2**15  # elements per piece: they fit into the processor's cache

Values = dict[str, MetricRecord | ConfigRecord]  # by their names in a reply


@dataclass(frozen=True)
class Rules:
    """What a reply is checked against: its task, and the site's own limits and patients.

    `about`: for a handshake only, the site's description of itself as the gateway computed it.
    """

    kind: Kind
    schema: Schema
    came_in: Arrays
    patients: Patients
    min_patients: int
    max_update: float
    histograms: bool = False
    embeddings: bool = False
    about: Mapping[str, str] = field(default_factory=dict)


def check_reply(content: Content, read: ReadChunk, rules: Rules) -> Values:
    """Return newly composed value records of a reply, which may leave. `read` reads the chunks of its arrays.

    Raises Refusal: E_REPLY_RECORDS, E_REPLY_KEYS, E_REPLY_SHAPE, E_REPLY_DAMAGED, E_REPLY_NOT_FINITE,
    E_REPLY_VARIANCE, E_REPLY_COUNTER, E_REPLY_BUFFERS, E_REPLY_DIGITS, E_REPLY_UPDATE, E_REPLY_HEAD, E_HANDSHAKE,
    and those of `check_figures` and `check_summands`.
    """
    expected = rules.schema.gives(rules.kind)
    is_handshake = rules.kind == HANDSHAKE
    _check_records(content, expected, metrics=set() if is_handshake else {"metrics"})
    if is_handshake:
        return {ABOUT: _checked_about(content.configs[ABOUT], rules.about)}
    figures = _checked_figures(content.metrics["metrics"], rules)
    went_out = Arrays(content.arrays, read)
    for record, specs in expected.items():
        if record in content.arrays:
            _check_shapes(content.arrays[record], specs)
    if rules.kind in TRAINING:
        _check_weights(went_out, rules)
        _check_fixed(went_out, rules)
    if rules.kind == "train":
        _check_buffers(went_out, rules)
    if rules.kind == "train.head":
        _check_all_but_the_head(went_out, rules)
    if rules.kind == "evaluate.embed":
        for record, specs in expected.items():
            _check_moments(record, went_out, specs)
    return {"metrics": MetricRecord(dict(figures))}


def _checked_figures(metrics: Mapping[str, Any], rules: Rules) -> dict[str, float]:
    """Return the figures that may leave or, in a study with summed answers, what is added to the sum."""
    withheld = withheld_figures(rules.kind, is_private=rules.schema.private_round is not None)
    if rules.schema.summed and rules.kind in SUMMED:
        return check_summands(
            metrics,
            rules.kind,
            rules.patients,
            min_patients=rules.min_patients,
            embeddings=rules.embeddings,
            withheld_figures=withheld,
        )
    return check_figures(
        metrics,
        rules.kind,
        rules.patients,
        min_patients=rules.min_patients,
        histograms=rules.histograms,
        embeddings=rules.embeddings,
        withheld_figures=withheld,
    )


def _check_records(content: Content, expected: Mapping[str, Specs], *, metrics: set[str]) -> None:
    """Require exactly the records of such a reply: its arrays, and either figures or the site's description."""
    needed = {name for name, specs in expected.items() if specs}
    configs = set() if metrics else {ABOUT}
    is_known = set(content.configs) == configs and set(content.metrics) == metrics
    if not is_known or not needed <= set(content.arrays) <= set(expected):
        raise Refusal(protocol_reasons.REPLY_RECORDS)


def _checked_about(record: Mapping[str, Any], about: Mapping[str, str]) -> ConfigRecord:
    """Require that the site's description equals the one that the gateway computed, so that the app chooses nothing."""
    if not is_answer(about) or dict(record) != dict(about):
        raise Refusal(protocol_reasons.HANDSHAKE)
    return ConfigRecord(dict(about))


def _check_shapes(heads: Mapping[str, ArrayHead], specs: Mapping[str, ArraySpec]) -> None:
    if set(heads) != set(specs):
        raise Refusal(protocol_reasons.REPLY_KEYS)
    if not all(spec.fits(heads[name]) for name, spec in specs.items()):
        raise Refusal(protocol_reasons.REPLY_SHAPE)


# --- arrays -----------------------------------------------------------------------------------------------


def _check_weights(went_out: Arrays, rules: Rules) -> None:
    """Require finite weights, and an update of at most `max_update` times the length of the received weights.

    In half precision the reply holds the update itself.
    """
    moved = length = 0.0
    for name, spec in rules.schema.arrays.items():
        for new, old in _pairs("arrays", name, spec, went_out, rules):
            old_wide = old.astype(np.float64)
            with np.errstate(over="ignore"):  # an update of infinite length is refused below
                change = new.astype(np.float64) - (0 if rules.schema.is_half else old_wide)
                moved += float(change @ change)
                length += float(old_wide @ old_wide)
    if not math.sqrt(moved) <= rules.max_update * math.sqrt(length):
        raise Refusal(reasons.REPLY_UPDATE)


def _check_fixed(went_out: Arrays, rules: Rules) -> None:
    """Require that tensors which training does not change are identical to the received ones, bit by bit."""
    for name, spec in rules.schema.arrays.items():
        fixed = rules.schema.fixed(name)
        at = 0
        for new, old in _pairs("arrays", name, spec, went_out, rules):
            same = np.zeros_like(old) if rules.schema.is_half else old
            for start, end in fixed:
                inside = slice(max(0, start - at), max(0, end - at))
                if new[inside].tobytes() != same[inside].tobytes():
                    raise Refusal(reasons.REPLY_FIXED)
            at += len(new)


def _check_buffers(went_out: Arrays, rules: Rules) -> None:
    """Require finite values, variances of at least 0, and values that the round's number of steps can produce."""
    schema = rules.schema
    steps = steps_of_round(
        rules.patients.of_split.get("train", 0),
        batch_size=schema.batch_size,
        epochs=schema.local_epochs,
        steps=schema.local_steps,
    )
    for name, spec in schema.buffers.items():
        for new, old in _pairs("buffers", name, spec, went_out, rules):
            if is_variance(name) and (new < 0).any():
                raise Refusal(protocol_reasons.REPLY_VARIANCE)
            if is_counter(name) and not (new == old + steps).all():
                raise Refusal(reasons.REPLY_COUNTER)
    for name, spec in schema.buffers.items():
        if is_variance(name):
            mean = name.removesuffix(VARIANCE) + MEAN
            means = _pairs("buffers", mean, spec, went_out, rules)
            variances = _pairs("buffers", name, spec, went_out, rules)
            for (new_mean, old_mean), (new, old) in zip(means, variances, strict=True):
                if not could_follow(new_mean, new, old_mean, old, steps=steps):
                    raise Refusal(reasons.REPLY_BUFFERS)


def _check_all_but_the_head(went_out: Arrays, rules: Rules) -> None:
    """Require that a task which fits only the head leaves everything else identical, bit by bit."""
    for record, specs in rules.schema.model.items():
        for name, spec in specs.items():
            left = rules.schema.head_from if record == "arrays" else spec.length
            is_change = record == "arrays" and rules.schema.is_half
            for new, old in _pairs(record, name, spec, went_out, rules):
                same = np.zeros_like(old) if is_change else old
                if new[:left].tobytes() != same[:left].tobytes():
                    raise Refusal(reasons.REPLY_HEAD)
                left = max(0, left - len(new))


def _check_moments(record: str, went_out: Arrays, specs: Specs) -> None:
    """Require means and variances that are finite and have few digits, and variances of at least 0."""
    for name, spec in specs.items():
        for values in pieces(went_out.heads[record][name], spec, went_out.read):
            if not np.isfinite(values).all():
                raise Refusal(protocol_reasons.REPLY_NOT_FINITE)
            if name == "variance" and (values < 0).any():
                raise Refusal(protocol_reasons.REPLY_VARIANCE)
            if not RANGES[name].holds(values):
                raise Refusal(reasons.REPLY_DIGITS)


def _pairs(
    record: str, name: str, spec: ArraySpec, went_out: Arrays, rules: Rules
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield an array's values piece by piece: of the reply, and of the received model (see `Schema.is_half`)."""
    came_in = rules.came_in
    reply_name = rules.schema.reply_name(name) if record == "arrays" else name
    for new, old in zip(
        pieces(went_out.heads[record][reply_name], spec, went_out.read),
        pieces(came_in.heads[record][name], spec, came_in.read),
        strict=True,
    ):
        if not np.isfinite(new).all():
            raise Refusal(protocol_reasons.REPLY_NOT_FINITE)
        yield new, old


def pieces(head: ArrayHead, spec: ArraySpec, read: ReadChunk) -> Iterator[NDArray[Any]]:
    """Yield the values of an array in order, in pieces; its bytes must be exactly those of a numpy file.

    Raises Refusal E_REPLY_DAMAGED if a chunk is missing, has another length, or begins with other bytes.
    """
    dtype = np.dtype(spec.dtype)
    rest = b""  # the first bytes of a value that continues in the next chunk
    for number, (chunk, length) in enumerate(zip(head.chunks, spec.chunk_bytes(), strict=True)):
        data = _chunk_data(read, chunk, length, b"" if number else spec.header)
        data = memoryview(rest + bytes(data)) if rest else data
        whole = len(data) // dtype.itemsize * dtype.itemsize
        rest = bytes(data[whole:])
        for start in range(0, whole, PIECE_LENGTH * dtype.itemsize):
            # Copied, so that the caller does not keep the whole chunk in memory.
            yield np.frombuffer(data[start : min(whole, start + PIECE_LENGTH * dtype.itemsize)], dtype).copy()
        del data  # free it before reading the next chunk


def _chunk_data(read: ReadChunk, chunk: str, length: int, beginning: bytes) -> memoryview:
    """Return a chunk's data after its beginning. Raises Refusal E_REPLY_DAMAGED."""
    try:
        body = chunk_body(read(chunk))
    except (KeyError, OSError, ValueError) as error:
        raise Refusal(reasons.REPLY_DAMAGED, private=str(error)) from error
    if len(body) != length or body[: len(beginning)] != beginning:
        raise Refusal(reasons.REPLY_DAMAGED, private="the chunk is not part of the expected numpy file")
    return body[len(beginning) :]
