"""Decide which models and which questions a site accepts, and remember the answers that it gave.

Combines `lineage` (where a model comes from), `questions` (how often it is asked about) and `calibration_answers`
(with which thresholds). All functions here read and write files: call them in a thread.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.gateway.first_model import MODEL_RECORDS, heads_as_json
from federation.gateway.flower_objects import Arrays, Content, ReadChunk
from federation.gateway.lineage import Lineage
from federation.gateway.memory import answered
from federation.gateway.questions import EMBED, QUESTIONS, KeptAnswer, Question, Questions
from federation.gateway.schema import Schema, first_model_of
from federation.protocol import reasons
from federation.protocol.calibration_answers import Answer, check_settings, from_record
from federation.protocol.metric_allowlist import EXAMPLES, TRAINING, Kind
from federation.protocol.release_files import BEGINS_FROM
from federation.protocol.reply_validation import CALIBRATIONS
from models.refusal import Refusal
from pipeline.site.folder import GatewayTable


@dataclass(frozen=True)
class Asked:
    """The fields of a task that this module needs. `settings`: the calibration and thresholds of a test."""

    run: str
    study: str  # JSON
    schema: Schema
    kind: Kind
    round: int
    content: Content
    settings: Mapping[str, float]
    cohort: Collection[str]  # digests of the training patients


class Admission:
    """The models and questions that a site accepts. `folder`: SITE_DIR/gateway."""

    def __init__(self, folder: Path, limits: GatewayTable, *, min_patients: int) -> None:
        self._folder, self._limits, self._min_patients = folder, limits, min_patients
        self._questions = Questions(folder / "answers", a_month=limits.max_questions_a_month)

    def earlier(self, asked: Asked, *, can_calibrate: bool) -> KeptAnswer | None:
        """Return the earlier answer to the same question; None if the question is new and may be answered.

        `can_calibrate`: whether the site has enough validation patients. Raises Refusal: E_ASKED_ALREADY,
        E_MEMORY_LOST, E_QUESTIONS_RUN, E_QUESTIONS_MONTH, E_COHORT_ALMOST_SAME, E_THRESHOLDS.
        """
        if asked.kind not in QUESTIONS:
            return None
        question = _question(asked)
        kept = self._questions.earlier(question)
        if kept is not None:  # a fitted head is too large to keep: the node fits the same head again
            return None if asked.kind in TRAINING else kept
        self._questions.check_budget(question, asked.schema.questions)
        if asked.kind == EMBED:
            self._questions.check_cohort(asked.cohort, min_patients=self._min_patients)
        if asked.settings:
            own = self._questions.figures_of(question.model, "evaluate.calibrate")
            answers = _answers(asked.content, own, can_calibrate=can_calibrate)
            check_settings(asked.settings, answers, is_robust=asked.schema.is_robust)
        return None

    def check_model(self, asked: Asked, read: ReadChunk) -> None:
        """Check that the task's model can be a result of this run. `read` reads the model's chunks.

        Raises Refusal as `Lineage.check` does.
        """
        if asked.schema.takes(asked.kind):
            self._lineage(asked).check(asked.kind, asked.round, _model(asked, read))

    def remember(
        self,
        asked: Asked,
        chunks: Path,
        reply: Content,
        figures: Mapping[str, Any],
        read: ReadChunk,
        *,
        is_worse: bool = False,
    ) -> None:
        """Record, before the reply leaves, the answer about a model, or that the model was trained here.

        `chunks`: folder of the model's chunks, named by their ids. `read` reads the reply's chunks. `is_worse`: see
        `Lineage.accept`. Raises OSError.
        """
        if asked.kind in QUESTIONS:
            is_model = asked.kind in TRAINING
            arrays = {} if is_model else heads_as_json(reply.arrays)
            kept = {} if is_model else {id: read(id) for id in reply.chunks()}
            self._questions.keep(_question(asked), KeptAnswer(figures, arrays, kept), asked.cohort)
        if asked.kind == "train":
            model = _model(asked, lambda chunk: (chunks / chunk).read_bytes())
            self._lineage(asked).accept(asked.round, model, chunks, is_worse=is_worse)

    def remembered(self, asked: Asked) -> list[tuple[str, str]]:
        """Return kinds and digests of the ledger's lines that name what `remember` has kept (see `memory`)."""
        return [answered(_question(asked))] if asked.kind in QUESTIONS else []

    def _lineage(self, asked: Asked) -> Lineage:
        return Lineage(
            self._folder / "models",
            asked.run,
            asked.schema,
            read_first=lambda: first_model_of(asked.study, self._folder / "schemas", self._folder.parent / BEGINS_FROM),
            max_missed=self._limits.max_missed_rounds,
        )


def _question(asked: Asked) -> Question:
    return Question.of(asked.run, asked.kind, asked.content, masked=asked.schema.summed)


def _model(asked: Asked, read: ReadChunk) -> Arrays:
    return Arrays({name: heads for name, heads in asked.content.arrays.items() if name in MODEL_RECORDS}, read)


def _answers(content: Content, own: Mapping[str, Any] | None, *, can_calibrate: bool) -> list[Answer]:
    """Return the sites' calibrations that accompany a test; `own`, this site's calibration, must be among them.

    A site with enough patients for a calibration must have been asked for it first. Raises Refusal E_THRESHOLDS.
    """
    answers = list(from_record(content.configs.get(CALIBRATIONS, {})))
    if own is None:
        if can_calibrate:
            raise Refusal(reasons.THRESHOLDS, private="this site was not asked for its own calibration")
        return answers
    if not any(_figures(each) == _figures(own) for each in answers):
        raise Refusal(reasons.THRESHOLDS, private="the calibrations do not include this site's own")
    return answers


def _figures(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer without its weight: the server may count fewer patients, at most the site's enrolled number."""
    return {name: value for name, value in answer.items() if name != EXAMPLES}
