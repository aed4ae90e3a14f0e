"""What a site adds to a masked sum: its checked reply as a vector of words, in the form that the study allows.

The server proposes how replies are summed. A gateway accepts only what follows from the study, the question and the
approved hospitals; the server chooses the number of all patients, and how long an update may be.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from numpy.typing import NDArray
from pydantic import ValidationError

from federation.gateway import reasons
from federation.gateway.flower_objects import Arrays, Content, ReadChunk
from federation.gateway.reply_checks import Values, pieces
from federation.gateway.schema import ArraySpec, Schema
from federation.protocol.batch_norm import MEAN, VARIANCE
from federation.protocol.masked_replies import FIGURES, MOST_PATIENTS, TABLES
from federation.protocol.metric_allowlist import EXAMPLES, LABELS
from federation.protocol.summed_answers import label_of, sites_with
from federation.secure_aggregation import ballots
from federation.secure_aggregation.answer_vector import Answer, AnswerSettings, answer_vector
from federation.secure_aggregation.masking import Words
from federation.secure_aggregation.reply_vector import Reply, Settings, vector
from federation.secure_aggregation.update_checks import clip_factor
from models.refusal import Refusal

SumSettings = Settings | AnswerSettings


def checked_settings(told: Any, kind: str, schema: Schema, sites: int) -> SumSettings:
    """Return the server's settings of a sum of this kind (`summed_as`). Raises Refusal E_SECAGG_SETTINGS."""
    settings: SumSettings
    try:
        settings = (AnswerSettings if kind in TABLES else Settings).model_validate(told)
    except ValidationError as error:
        raise Refusal(reasons.SECAGG_SETTINGS, private=f"{error.error_count()} errors") from error
    free = {"patients"} if kind in TABLES else {"patients", "longest"}
    fits = settings.model_dump(exclude=free) == _expected(kind, schema, sites)
    if not fits or (kind in TABLES and settings.patients > MOST_PATIENTS * sites):
        raise Refusal(reasons.SECAGG_SETTINGS, private="settings")
    return settings


def _expected(kind: str, schema: Schema, sites: int) -> dict[str, Any]:
    if kind not in TABLES:
        means = _buffer(schema, MEAN)
        channels = schema.buffers[means].length if means else 0
        weights = schema.arrays[_weights(schema)].length
        return {"weights": weights, "channels": channels, "figures": FIGURES, "sites": sites}
    table, embeds = TABLES[kind], schema.gives("evaluate.embed")
    moments = {record: embeds[record]["mean"].length for record in table.moments}
    return {"kind": kind, "counts": table.counts, "means": table.means, "moments": moments, "sites": sites}


def brought_by(settings: SumSettings, values: Values) -> int:
    """Return a bit for each part of a reply that the site has: each figure, then all counts of each label."""
    figures = values["metrics"]
    has = [name in figures for name in _figures(settings)]
    has += [figures.get(sites_with(label)) == 1 for label in _counts(settings)]
    return sum(1 << bit for bit, is_there in enumerate(has) if is_there)


def without_parts(values: Values, settings: SumSettings, parts: int) -> Values:
    """Return the values of a checked reply without these parts, numbered as by `brought_by`."""
    names = [*((name,) for name in _figures(settings)), *_counts(settings).values()]
    left_out = {name for bit, part in enumerate(names) if parts >> bit & 1 for name in part}
    kept: dict[str, Any] = {name: value for name, value in values["metrics"].items() if name not in left_out}
    return {**values, "metrics": MetricRecord(kept)}


def _figures(settings: SumSettings) -> tuple[str, ...]:
    return settings.means if isinstance(settings, AnswerSettings) else settings.figures


def _counts(settings: SumSettings) -> dict[str, tuple[str, ...]]:
    """Return the names of the counts by the label whose patients they cover."""
    names = settings.counts if isinstance(settings, AnswerSettings) else ()
    return {label: tuple(name for name in names if label_of(name) == label) for label in LABELS if names}


def words_of(
    settings: SumSettings,
    schema: Schema,
    came_in: Arrays,
    content: Content,
    values: Values,
    read: ReadChunk,
    vote: ballots.Answer = ballots.NO_VOTE,
) -> Iterator[Words]:
    """Return the vector of a checked reply, in pieces. `read` reads the chunks of its arrays.

    `vote`: what the site says of the model that it trained; answers to questions hold none.

    Raises Refusal, before any mask is made: E_SECAGG_SPARSE, E_SECAGG_RANGE, E_SECAGG_WEIGHT.
    """
    went_out = Arrays(content.arrays, read)
    figures = {name: float(str(value)) for name, value in values["metrics"].items() if name != EXAMPLES}
    patients = int(str(values["metrics"][EXAMPLES]))
    if isinstance(settings, AnswerSettings):
        return iter([answer_vector(_answer(patients, figures, settings, schema, went_out), settings)])
    reply = _reply(patients, figures, settings, schema, came_in, went_out)
    reply = replace(reply, ballot=ballots.Ballot.drawn(vote))
    next(vector(reply, settings))  # all but the weights, whose changes have been read already
    return vector(reply, settings)


def _answer(
    patients: int, figures: Mapping[str, float], settings: AnswerSettings, schema: Schema, went_out: Arrays
) -> Answer:
    def array(record: str, name: str, spec: ArraySpec) -> NDArray:
        return np.concatenate(list(pieces(went_out.heads[record][name], spec, went_out.read)))

    return Answer(
        patients,
        counts={name: int(figures[name]) for name in settings.counts if name in figures},
        means={name: figures[name] for name in settings.means if name in figures},
        moments={
            record: (array(record, "mean", specs["mean"]), array(record, "variance", specs["variance"]))
            for record, specs in schema.gives("evaluate.embed").items()
            if record in settings.moments
        },
    )


def _reply(
    patients: int,
    figures: Mapping[str, float],
    settings: Settings,
    schema: Schema,
    came_in: Arrays,
    went_out: Arrays,
) -> Reply:
    """Return the reply to a round of training. Raises Refusal: E_SECAGG_SPARSE, E_SECAGG_RANGE, E_SECAGG_WEIGHT."""
    weights = _weights(schema)

    def changes() -> Iterator[NDArray]:
        spec = schema.arrays[weights]
        new = pieces(went_out.heads["arrays"][weights], spec, went_out.read)
        old = pieces(came_in.heads["arrays"][weights], spec, came_in.read)
        for after, before in zip(new, old, strict=True):
            yield after.astype(np.float64) - before

    def buffer(kind: str) -> NDArray:
        if not (name := _buffer(schema, kind)):
            return np.zeros(0)
        return np.concatenate(list(pieces(went_out.heads["buffers"][name], schema.buffers[name], went_out.read)))

    scale = clip_factor(
        changes(),
        longest=settings.longest,
        weights=settings.weights,
        least=settings.least(patients),
        fixed=schema.fixed(weights),
    )
    known = {name: figures[name] for name in FIGURES if name in figures}
    return Reply(patients, known, buffer(MEAN), buffer(VARIANCE), changes(), scale)


def _weights(schema: Schema) -> str:
    """Return the name of the one array that holds all weights; `flat_weights` has the name, and needs torch."""
    (name,) = schema.arrays
    return name


def _buffer(schema: Schema, kind: str) -> str:
    """Return the name of the array of one kind of batch-norm buffer; "" if the network has none."""
    return next((name for name in schema.buffers if name.endswith(kind)), "")
