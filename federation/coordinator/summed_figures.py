"""The guarded strategy of a study with summed answers: it sees each update, and of the rounds' figures only the sums.

The figures describe a hospital's validation patients and the model that the server sent, so a server that chooses the
model would learn about single patients from them. Each gateway masks its figures and sends them beside the update. A
round never depends on their sum: if too few hospitals take part in it, the round has no figures.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from federation.coordinator.masked_reply import words_in
from federation.coordinator.masked_round import MaskedRound
from federation.coordinator.masked_service import MaskedService
from federation.coordinator.masked_study import TRAINING_SHARE, MaskedStudy, watch
from federation.gateway.first_model import write_chunks
from federation.gateway.flower_objects import Content
from federation.gateway.questions import Question
from federation.protocol.masked_replies import MASKED, ROUND_FIGURES, TABLES
from federation.secure_aggregation.answer_vector import AnswerSettings, sum_of
from federation.secure_aggregation.server_round import ServerRound
from federation.strategy.guarded import GuardedStrategy
from models.refusal import Refusal

WAIT_SECONDS = 20.0  # for signatures, and then for shares: the round is over, and the next one waits
log = logging.getLogger(__name__)


class SummedFigures(GuardedStrategy):
    """A `GuardedStrategy` whose rounds' figures are sums. `current`: the sum that gateways ask about."""

    def __init__(self, *arguments: Any, masked: MaskedStudy, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.masked = masked
        self.current: MaskedRound | None = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer the gateways of the hospitals while the block runs."""
        with MaskedService(self.masked.server_folder, lambda: self.current):
            yield

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open the sum of the round's figures, and return the messages of the round.

        Raises Refusal as the base class does; OSError if the state cannot be stored.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        asked = {node: self.masked.names[node] for node in self.masked.on_roster(self._sampled, ROUND_FIGURES)}
        settings, question = self._settings(), self._question()
        header = self.masked.next_header(
            self.first_round - 1 + server_round,
            kind=ROUND_FIGURES,
            model=question.model,
            asked=question.asked,
            settings=settings.digest,
        )
        folder = self.masked.folder / "figures"
        current = self.current = MaskedRound(
            header,
            settings,
            lambda header: ServerRound(self.masked.roster, header, folder, words=settings.words),
            asked.values(),
            seconds=TRAINING_SHARE * self.masked.round_seconds,
            only=self.masked.summed_over(ROUND_FIGURES),
        )
        watch(current, lambda: self.current is current, asked, grid)
        return messages

    def _question(self) -> Question:
        """Return what the figures are about: the model of the round, and nothing besides."""
        arrays = {"arrays": self.arrays, **({"buffers": self.buffers} if self.buffers else {})}
        content = Content(arrays=write_chunks(arrays), configs={"config": {}})
        return Question.of(self.masked.run, "train", content)

    def _settings(self) -> AnswerSettings:
        table = TABLES[ROUND_FIGURES]
        return AnswerSettings(
            kind=ROUND_FIGURES,
            counts=table.counts,
            means=table.means,
            moments={},
            patients=self.masked.patients,
            sites=len(self.masked.roster.members),
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return what the base class returns; its figures are those of the sum."""
        return super().aggregate_train(server_round, self._without_words(replies))

    def _without_words(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies as those of a study without masks; add their masked figures to the sum."""
        for reply in replies:
            name = self.masked.names.get(reply.metadata.src_node_id, "")
            if not self._has_joined(name, reply) and self.current is not None:
                self.current.left(name)
            if reply.has_content():
                reply.content.pop(MASKED, None)
            yield reply

    def _has_joined(self, name: str, reply: Message) -> bool:
        """Add the masked figures of a reply to the sum; return whether it has any that fit."""
        if self.current is None or not reply.has_content() or MASKED not in reply.content:
            return False
        try:
            self.current.upload(name, words_in(reply.content[MASKED], self._settings().words))
        except Refusal as refusal:
            log.info("the figures of %s are not in the sum: %s", name, refusal.code)
            return False
        return True

    def _summed_figures(self, number: int) -> Mapping[str, float]:
        """Return the means of the round's figures; none if there is no sum."""
        if (current := self.current) is None:
            return {}
        try:
            total, present = current.unmask(WAIT_SECONDS)
            self.masked.note_summed(ROUND_FIGURES, present)
            return sum_of(total, self._settings(), len(present)).means
        except Refusal as refusal:
            log.info("round %d has no figures: %s", number, refusal)
            return {}
        finally:
            current.forget()
            self.current = None
