"""A round of a study with summed answers, through the real gateway: the update leaves, its figures only in a sum."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord

from federation.gateway import admission, masked_rounds, task_exchange, task_intake
from federation.gateway.first_model import write_chunks
from federation.gateway.flower_objects import Content
from federation.gateway.masked_only import check_masked
from federation.gateway.masked_rounds import MaskedRounds
from federation.gateway.questions import Question
from federation.gateway.reply import compose_records
from federation.gateway.reply_checks import Values
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.masked_replies import MASKED, ROUND_FIGURES, TABLES, WORDS
from federation.secure_aggregation.answer_vector import Answer, AnswerSettings, AnswerSum, answer_vector, sum_of
from federation.secure_aggregation.messages import Header
from federation.secure_aggregation.reply_vector import Settings
from federation.secure_aggregation.roster import Roster
from models.refusal import Refusal
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench
from tests.federation.gateway.messages import EveryStudy, arrays_of, first_of, trained
from tests.federation.gateway.test_masked_rounds import (  # noqa: F401
    CAME_IN,
    FIGURE,
    RNG,
    STEPS,
    STUDY,
    MaskedServer,
    Study,
    short,
    site,
    wait_for,
)
from tests.federation.gateway.test_masked_rounds import SCHEMA as SECURE

SCHEMA = replace(SECURE, secure=False, summed_answers=True)
SETTINGS = AnswerSettings(
    kind=ROUND_FIGURES, counts=(), means=TABLES[ROUND_FIGURES].means, moments={}, patients=1000, sites=3
)
ASKED = Question.of("", "train", Content(configs={"config": {}})).asked


class Figures(Study):
    """The gateway's site and two hospitals whose AUROC is 0.25."""

    def words(self, settings: Settings | AnswerSettings) -> np.ndarray:
        assert isinstance(settings, AnswerSettings)
        return answer_vector(Answer(50, means={"auroc_severe": 0.25}), settings)

    def expect(self, settings: AnswerSettings = SETTINGS, **different: object) -> Header:
        """Open the sum of the round's figures, in which the other hospitals take part."""
        return self.open(3, settings, **{"kind": ROUND_FIGURES, "asked": ASKED} | different)

    def train(self) -> Message:
        return self.work(short(trained(CAME_IN, RNG, STEPS)))

    def sums(self, reply: Message) -> AnswerSum:
        """Let the server unmask the sum."""
        shared = self.server.round
        assert shared is not None
        shared.upload("north", reply.content.array_records[MASKED][WORDS].numpy())
        wait_for(lambda: shared.replies == 3)  # the other two reply in threads
        total, present = shared.unmask(60)
        return sum_of(total, SETTINGS, len(present))

    def left_out(self) -> list[str]:
        return [kind.split(", ")[1] for kind in self.kinds() if "figures left out" in kind]

    def sent(self) -> bytes:
        return b"".join(self.server.received.values()) + b"".join(body for _, body in self.server.told)


@pytest.fixture
def study(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Figures]:  # noqa: F811
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: SCHEMA)
    monkeypatch.setattr(task_intake, "names_by_digest", lambda folder: EveryStudy())
    monkeypatch.setattr(admission, "first_model_of", lambda *_: arrays_of(first_of(SCHEMA)))
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    bench = Bench(site, server := MaskedServer(study=STUDY))
    yield Figures(site, bench, server)
    bench.close()


def leaves_without_figures(reply: Message) -> None:
    """The update counts, and nothing but the number of patients is beside it."""
    assert set(reply.content) == {"arrays", "buffers", "metrics", "ledger"}
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 30}


def test_update_leaves_and_its_figures_only_in_a_sum(study: Figures) -> None:
    study.approve()
    study.brings = dict.fromkeys(study.others, 1 << SETTINGS.means.index("auroc_severe"))
    study.expect()
    reply = study.train()
    assert set(reply.content) == {"arrays", "buffers", "metrics", MASKED, "ledger"}
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 30}
    moved = reply.content.array_records["arrays"][WEIGHTS].numpy() - CAME_IN["arrays"][WEIGHTS]
    assert np.abs(moved).max() > 0, "the update is sent as it is"
    assert b"auroc_severe" not in b"".join(study.server.received.values())
    found = study.sums(reply)
    # Three hospitals have an AUROC, and only this one a training loss: all leave it out.
    assert found.means == pytest.approx({"auroc_severe": (30 * FIGURE["auroc_severe"] + 100 * 0.25) / 130}, abs=1e-6)
    assert found.patients == 130
    assert "masking" not in study.kinds() and "masked: sum may be revealed" in study.kinds()


def test_figures_of_one_model_are_summed_once(study: Figures) -> None:
    """The difference of two sums would be the figures of the hospital that is missing in one."""
    study.approve()
    study.expect()
    study.sums(study.train())
    wait_for(lambda: "masked: sum may be revealed" in study.kinds())
    study.expect(attempt=2)
    study.train()
    leaves_without_figures(study.reply(2))
    assert study.left_out() == ["E_SECAGG_MODEL_USED"]


def test_hospital_without_an_approved_list_does_not_train(study: Figures) -> None:
    study.expect()
    reply = study.train()
    assert reply.has_error() and reply.error.reason == "E_SECAGG_ROSTER"


def test_server_with_another_list_gets_nothing(study: Figures) -> None:
    study.approve()
    study.expect(roster=Roster(members=study.roster.members[:2]).digest)
    reply = study.train()
    assert reply.has_error() and reply.error.reason == "E_SECAGG_ROSTER"


def test_update_does_not_wait_for_a_server_that_sums_nothing(study: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_rounds, "SILENT_SECONDS", 0.3)
    study.approve()
    leaves_without_figures(study.train())
    assert study.left_out() == ["E_RUN_OVER"]


@pytest.mark.parametrize(
    "different",
    [
        {"kind": "train", "asked": "0" * 64},  # the round of a masked update
        {"kind": "evaluate.test"},
        {"asked": "1" * 64},
        {"model": "1" * 64},
    ],
)
def test_sum_of_something_else_gets_no_figures(study: Figures, different: dict[str, object]) -> None:
    study.approve()
    study.expect(**different)
    reply = study.train()
    leaves_without_figures(reply)
    assert study.left_out() == ["E_SECAGG_SETTINGS"]


def test_server_may_not_choose_what_is_summed(study: Figures) -> None:
    study.approve()
    study.expect(SETTINGS.model_copy(update={"means": ("auroc_severe",)}))
    leaves_without_figures(study.train())
    assert study.left_out() == ["E_SECAGG_SETTINGS"]


async def not_masked(self: object, task: object, content: Content, values: object) -> Content:
    return Content(arrays={MASKED: {WORDS: content.arrays["arrays"][WEIGHTS]}})


def test_words_that_were_not_masked_do_not_leave(study: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskedRounds, "mask", not_masked)
    study.approve()
    reply = study.train()
    assert reply.has_error() and reply.error.reason == "E_REPLY_UNMASKED"


@pytest.mark.parametrize(
    "values",
    [
        {"metrics": MetricRecord({"num-examples": 30, "auroc_severe": 0.75})},
        {"metrics": MetricRecord({"num-examples": 30, "epsilon": 1.0})},  # of a study without privacy
        {"metrics": MetricRecord({"num-examples": 30}), "more": MetricRecord({"auroc_severe": 0.75})},
        {"metrics": MetricRecord({"num-examples": 30}), "more": ConfigRecord({"auroc_severe": 0.75})},
        {"more": MetricRecord({"num-examples": 30})},
        {},
    ],
)
def test_figures_beside_the_update_do_not_pass_the_last_check(values: Values) -> None:
    heads = write_chunks({name: group for name, group in CAME_IN.items() if group})
    with pytest.raises(Refusal, match="E_REPLY_UNMASKED"):
        check_masked("train", compose_records(Content(arrays=heads), values), {}.__getitem__, SCHEMA)
    alone: Values = {"metrics": MetricRecord({"num-examples": 30})}
    check_masked("train", compose_records(Content(arrays=heads), alone), {}.__getitem__, SCHEMA)


def test_app_sends_no_figures_past_the_mask(study: Figures) -> None:
    """Whatever else a hostile app puts beside the update."""
    study.approve()
    study.expect()

    def leak(reply: Message) -> None:
        reply.content["aside"] = ConfigRecord({"auroc_severe": 0.75})

    reply = study.work(short(trained(CAME_IN, RNG, STEPS)), leak=leak)
    assert reply.has_error() and reply.error.reason == "E_REPLY_RECORDS"
