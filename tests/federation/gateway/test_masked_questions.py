"""A question about a model in a study with secure aggregation, through the real gateway: only a sum ever leaves."""

import functools
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from federation.approval.peers import PeerApprovals
from federation.approval.studies import study_digest
from federation.coordinator.masked_questions import question_of
from federation.gateway import admission, masked_rounds, task_exchange, task_intake
from federation.gateway.schema import Schema
from federation.protocol.masked_replies import MASKED, MOST_PATIENTS, WORDS, round_of
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, LABELS, Kind
from federation.protocol.summed_answers import SUMMED, label_of, load_counts, logit_counts, sites_with
from federation.secure_aggregation.answer_vector import Answer, AnswerSettings, AnswerSum, answer_vector, sum_of
from federation.secure_aggregation.messages import Header, hospitals_digest
from federation.secure_aggregation.reply_vector import Settings
from federation.secure_aggregation.store import Store, witness_folder
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench
from tests.federation.gateway.messages import EveryStudy, arrays_of, first_of, moments, record_of, trained
from tests.federation.gateway.test_masked_rounds import (  # noqa: F401
    ALL_PARTS,
    CAME_IN,
    RNG,
    SCHEMA,
    STEPS,
    STUDY,
    MaskedServer,
    Study,
    short,
    site,
    wait_for,
)
from tests.federation.gateway.test_task_exchange import wait_until_idle

RUN = "trial-0123abcd"
KINDS: tuple[Kind, ...] = tuple(SUMMED)
FIGURES: dict[Kind, dict[str, float]] = {
    "evaluate.embed": {},
    "evaluate.calibrate": {"distance_mean": 0.35},
    "evaluate.test": {"auroc_severe": 0.75},
}
CLASSES = {"pcr_positive": (10, 20), "severe": (10, 10)}  # patients of the site with the value false, and true


def counts_of(kind: Kind) -> dict[str, int]:
    """The site's counts: all patients of a class have the same score."""
    counts = dict.fromkeys(SUMMED[kind].counts, 0)
    for label, sizes in CLASSES.items() if counts else ():
        counts[sites_with(label)] = 1
        for value in (False, True):
            counts[logit_counts(label)[value, 20 + 10 * value]] = sizes[value]
            if kind == "evaluate.test":
                counts[load_counts(label)[value, 3]] = sizes[value]
    return counts


OUT = moments(SCHEMA, np.random.default_rng(5))
TYPICAL = record_of(moments(SCHEMA, np.random.default_rng(6))["looks"])
LENGTHS = {"moments": SCHEMA.features, "looks": APPEARANCE_SIZE}


def settings_of(kind: Kind) -> AnswerSettings:
    table = SUMMED[kind]
    lengths = {record: LENGTHS[record] for record in table.moments}
    return AnswerSettings(kind=kind, counts=table.counts, means=table.means, moments=lengths, patients=1000, sites=3)


def records_of(kind: Kind, **config: float | bool) -> dict[str, ArrayRecord | ConfigRecord]:
    records: dict[str, ArrayRecord | ConfigRecord] = {name: record_of(arrays) for name, arrays in CAME_IN.items()}
    return records | {"config": ConfigRecord(config)} | ({"typical": TYPICAL} if kind == "evaluate.calibrate" else {})


class Questions(Study):
    """The gateway's site and two hospitals that answer zeros. `masked`: whether the study is."""

    asked, masked = 0, True

    def words(self, settings: Settings | AnswerSettings) -> np.ndarray:
        assert isinstance(settings, AnswerSettings)
        zeros = {name: (np.zeros(length), np.zeros(length)) for name, length in settings.moments.items()}
        return answer_vector(Answer(50, moments=zeros), settings)

    def expect(self, kind: Kind, /, settings: AnswerSettings | None = None, **different: object) -> Header:
        """Open the masked round of a question, in which the other hospitals take part."""
        question = question_of(RUN, kind, records_of(kind))  # type: ignore[arg-type]
        about = {"kind": kind, "asked": question.asked} | different
        return self.open(round_of(kind, SCHEMA.rounds), settings or settings_of(kind), **about)

    def ask(self, kind: Kind, *, answers: bool = True, **config: float | bool) -> Message:
        """Send the question, and return what the server receives. `answers`: whether the node must answer."""
        self.asked += 1
        told = {"server-round": 0, "ledger-head": "", "ledger-lines": 0, **config}
        content = records_of(kind) | {"config": ConfigRecord(told)}
        self.server.give(RecordDict(content), message_type=kind)  # type: ignore[arg-type]
        wait_until_idle(self.bench)  # before that, the gateway gives no task
        with self.bench.node() as node:
            task = node.fetch()
            assert (task is not None) is answers
            if task is not None:
                arrays = {name: record_of(OUT[name]) for name in SUMMED[kind].moments}
                counts = counts_of(kind) if self.masked else {}
                metrics = MetricRecord({**FIGURES[kind], **counts, "num-examples": 30})
                node.push(Message(RecordDict({**arrays, "metrics": metrics}), reply_to=task))  # type: ignore[dict-item]
            return self.reply(self.asked)

    def sums(self, kind: Kind, reply: Message) -> AnswerSum:
        """Let the server unmask the sum."""
        shared = self.server.round
        assert shared is not None
        assert set(reply.content) == {MASKED, "ledger"}
        shared.upload("north", reply.content.array_records[MASKED][WORDS].numpy())
        wait_for(lambda: shared.replies == 3)  # the other two reply in threads
        total, present = shared.unmask(60)
        assert present == ("north", "south", "west")
        wait_for(lambda: not list((self.site.folder / "gateway" / "secagg").glob("*.begun")))
        return sum_of(total, settings_of(kind), 3)

    def restart(self) -> None:
        self.bench.stop_gateway()
        self.bench.start_gateway()

    def sent(self) -> bytes:
        return b"".join(self.server.received.values()) + b"".join(body for _, body in self.server.told)


@pytest.fixture
def study(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Questions]:  # noqa: F811
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: SCHEMA)
    monkeypatch.setattr(task_intake, "names_by_digest", lambda folder: EveryStudy())
    monkeypatch.setattr(admission, "first_model_of", lambda *_: arrays_of(first_of(SCHEMA)))
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    server = MaskedServer(study=STUDY)
    bench = Bench(site, server)
    study = Questions(site, bench, server)
    study.approve()
    yield study
    bench.close()


def code_of(reply: Message) -> str:
    return reply.error.reason if reply.has_error() else ""


# --- what leaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_masked_words_leave_and_the_sum_has_the_answer(study: Questions, kind: Kind) -> None:
    study.expect(kind)
    reply = study.ask(kind)
    found = study.sums(kind, reply)
    assert (found.patients, found.counts) == (130, counts_of(kind))
    for name, value in FIGURES[kind].items():
        assert found.means[name] == pytest.approx(value, abs=1e-6)
        assert found.known[name] == pytest.approx(30 / 130, abs=1e-6)
    for record in SUMMED[kind].moments:
        mean, variance = (OUT[record][name].astype(np.float64) for name in ("mean", "variance"))
        share = 30 / 130
        np.testing.assert_allclose(found.moments[record][0], share * mean, atol=1e-5)
        spread = share * (variance + mean**2) - (share * mean) ** 2
        np.testing.assert_allclose(found.moments[record][1], spread, rtol=1e-4, atol=1e-4)
        assert OUT[record]["mean"].tobytes() not in study.sent()
    assert not any(name.encode() in b"".join(study.server.received.values()) for name in FIGURES[kind])
    kinds = study.kinds()
    assert (
        kinds.index("masking") < kinds.index(kind, 1 + kinds.index(kind)) < kinds.index("masked: sum may be revealed")
    )


@pytest.mark.parametrize("others", [0, 1])
def test_figures_that_fewer_than_three_hospitals_have_are_in_no_sum(study: Questions, others: int) -> None:
    """`others`: how many of the two other hospitals have them."""
    study.brings = {name: ALL_PARTS if at < others else 0 for at, name in enumerate(study.others)}
    study.expect("evaluate.test")
    found = study.sums("evaluate.test", study.ask("evaluate.test"))
    assert found.patients == 130
    assert not any(found.counts.values())
    assert not found.means


def test_only_the_label_that_fewer_than_three_hospitals_have_is_left_out(study: Questions) -> None:
    table = SUMMED["evaluate.test"]
    last = 1 << len(table.means) + len(LABELS) - 1
    study.brings[next(iter(study.others))] = ALL_PARTS & ~last
    study.expect("evaluate.test")
    found = study.sums("evaluate.test", study.ask("evaluate.test"))
    own = counts_of("evaluate.test")
    assert found.counts == {name: 0 if label_of(name) == LABELS[-1] else own[name] for name in table.counts}
    assert found.means["auroc_severe"] == pytest.approx(0.75, abs=1e-6)


def test_questions_follow_in_their_order(study: Questions) -> None:
    for kind in KINDS:
        study.expect(kind)
        study.sums(kind, study.ask(kind))
    assert study.kinds().count("masked: sum may be revealed") == 3


@pytest.mark.parametrize("kind", ["evaluate.assign", "train.head"])
def test_question_that_is_no_part_of_a_sum_is_refused(study: Questions, kind: Kind) -> None:
    study.server.give(RecordDict(records_of(kind)), message_type=kind)  # type: ignore[arg-type]
    with study.bench.node() as node:
        assert node.fetch() is None
        assert code_of(study.reply()) == "E_SECAGG_KIND"


def test_nothing_leaves_without_an_approved_list(study: Questions) -> None:
    PeerApprovals(study.site).revoke(study.roster.digest, by="a test")
    study.expect("evaluate.test")
    assert code_of(study.ask("evaluate.test")) == "E_SECAGG_ROSTER"


def test_nothing_leaves_if_the_server_opens_no_masked_round(study: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_rounds, "SILENT_SECONDS", 1.0)
    assert code_of(study.ask("evaluate.test")) == "E_RUN_OVER"
    assert b"auroc" not in study.sent()


# --- the server's description of the round ----------------------------------------------------------------


@pytest.mark.parametrize(
    "different",
    [
        {"kind": "train", "asked": "0" * 64},  # a round of training
        {"kind": "evaluate.calibrate"},
        {"asked": "f" * 64},
        {"model": "f" * 64},
        {"study": "f" * 64},
    ],
)
def test_header_that_is_not_that_of_the_question_is_refused(study: Questions, different: dict[str, object]) -> None:
    study.expect("evaluate.test", **different)
    assert code_of(study.ask("evaluate.test")) == "E_SECAGG_SETTINGS"
    assert not any(step in ("advertise", "share") for step, _ in study.server.told)


def test_header_of_a_question_is_refused_in_training(study: Questions) -> None:
    study.open(3, settings_of("evaluate.test"), kind="evaluate.test", asked="e" * 64)
    assert code_of(study.work(short(trained(CAME_IN, RNG, STEPS)))) == "E_SECAGG_SETTINGS"


@pytest.mark.parametrize(
    "different",
    [
        {"kind": "evaluate.calibrate"},
        {"counts": SUMMED["evaluate.test"].counts[:-1]},
        {"means": ("auroc_severe",)},
        {"means": (*SUMMED["evaluate.test"].means, "loss_severe")},
        {"moments": {"looks": APPEARANCE_SIZE}},
        {"sites": 4},
        {"patients": 3 * MOST_PATIENTS + 1},
    ],
)
def test_other_sums_than_those_of_the_table_are_refused(study: Questions, different: dict[str, object]) -> None:
    settings = AnswerSettings.model_validate(settings_of("evaluate.test").model_dump() | different)
    study.expect("evaluate.test", settings)
    assert code_of(study.ask("evaluate.test")) == "E_SECAGG_SETTINGS"


def test_settings_of_a_round_are_refused_for_a_question(study: Questions) -> None:
    study.open(6, study.settings, kind="evaluate.test", asked="e" * 64)
    assert code_of(study.ask("evaluate.test")) == "E_SECAGG_SETTINGS"


def test_hospital_with_more_patients_than_the_study_is_refused(study: Questions) -> None:
    study.expect("evaluate.test", settings_of("evaluate.test").model_copy(update={"patients": 29}))
    assert code_of(study.ask("evaluate.test")) == "E_SECAGG_WEIGHT"


# --- the same question again ------------------------------------------------------------------------------


def test_kept_answer_is_masked_anew_if_its_sum_was_not_revealed(study: Questions) -> None:
    study.expect("evaluate.test")
    first = study.ask("evaluate.test")
    study.expect("evaluate.test", attempt=2)
    again = study.ask("evaluate.test", answers=False)
    words = [reply.content.array_records[MASKED][WORDS].numpy() for reply in (first, again)]
    assert not np.array_equal(*words)
    assert study.sums("evaluate.test", again).means["auroc_severe"] == pytest.approx(0.75, abs=1e-6)
    assert study.kinds().count("masking") == 2


@pytest.mark.parametrize("restarts", [False, True])
def test_sum_that_was_revealed_is_not_revealed_again(study: Questions, restarts: bool) -> None:
    for kind in ("evaluate.embed", "evaluate.test"):
        study.expect(kind)
        study.sums(kind, study.ask(kind))
    if restarts:
        study.restart()
    study.expect("evaluate.test", attempt=2)
    assert code_of(study.ask("evaluate.test", answers=False)) == "E_SECAGG_MODEL_USED"
    study.expect("evaluate.embed", attempt=2)
    assert code_of(study.ask("evaluate.embed", answers=False)) == "E_SECAGG_ROUND_OLD"


def test_answers_that_a_backup_has_forgotten_are_not_summed_again(study: Questions) -> None:
    """The node answers anew, with other patients perhaps; the store of masked rounds knows the sum."""
    study.expect("evaluate.test")
    study.sums("evaluate.test", study.ask("evaluate.test"))
    shutil.rmtree(study.site.folder / "gateway" / "answers")
    study.expect("evaluate.test", attempt=2)
    assert code_of(study.ask("evaluate.test")) == "E_SECAGG_MODEL_USED"


def test_hospitals_of_a_sum_that_the_folder_has_forgotten_are_known_from_the_ledger(study: Questions) -> None:
    study.expect("evaluate.test")
    study.sums("evaluate.test", study.ask("evaluate.test"))
    hospitals = hospitals_digest(study.roster.by_name)
    assert f"masked: evaluate.test with figures over {hospitals}, study {study_digest(STUDY)}" in study.kinds()
    study.bench.stop_gateway()
    secagg = study.site.folder / "gateway" / "secagg"
    shutil.rmtree(secagg)
    study.bench.start_gateway()
    study.expect("evaluate.test", attempt=2)
    assert code_of(study.ask("evaluate.test", answers=False)) == "E_SECAGG_MODEL_USED"
    with closing(Store(secagg, witness_folder(study.site.folder))) as store:
        assert store.summed_over(study.roster.digest, "evaluate.test") == hospitals


def test_other_settings_about_the_same_model_are_refused(study: Questions) -> None:
    study.expect("evaluate.test")
    study.ask("evaluate.test")
    study.expect("evaluate.test", attempt=2)
    assert code_of(study.ask("evaluate.test", answers=False, audit=True)) == "E_ASKED_ALREADY"


@pytest.mark.parametrize("first_masked", [True, False])
def test_answer_to_a_masked_study_does_not_leave_in_a_plain_one(
    study: Questions, monkeypatch: pytest.MonkeyPatch, first_masked: bool
) -> None:
    """A second run asks the same about the same model, in a study without masks; and the reverse."""
    schemas: dict[bool, Schema] = {True: SCHEMA, False: replace(SCHEMA, secure=False)}
    study.expect("evaluate.test")
    for masked, answers in ((first_masked, True), (not first_masked, False)):
        monkeypatch.setattr(task_intake, "schema_of", functools.partial(lambda chosen, *_: chosen, schemas[masked]))
        study.restart()
        study.masked = masked
        reply = study.ask("evaluate.test", answers=answers)
    assert code_of(reply) == "E_ASKED_ALREADY"
    assert (b"auroc_severe" in b"".join(study.server.received.values())) is not first_masked


def test_question_counts_in_the_budget_once(study: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    once = replace(SCHEMA, questions={**SCHEMA.questions, "evaluate.test": 1})
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: once)
    for attempt in (1, 2):
        study.expect("evaluate.test", attempt=attempt)
        assert code_of(study.ask("evaluate.test", answers=attempt == 1)) == ""
    limited = replace(SCHEMA, questions={"evaluate.embed": 0})
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: limited)
    study.restart()
    study.expect("evaluate.embed")
    assert code_of(study.ask("evaluate.embed", answers=False)) == "E_QUESTIONS_RUN"


# --- gateways that are killed -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["begin", "advertise", "share"])
def test_gateway_killed_before_it_masked_answers_a_new_attempt(study: Questions, step: str) -> None:
    """The task of the killed gateway is reported as failed; the answer was kept before a key was made."""
    header = study.expect("evaluate.test")
    opened = study.server.round
    assert opened is not None
    study.server.stop_at = step
    told = {"server-round": 0, "ledger-head": "", "ledger-lines": 0}
    content = records_of("evaluate.test") | {"config": ConfigRecord(told)}
    study.server.give(RecordDict(content), message_type="evaluate.test")  # type: ignore[arg-type]
    with study.bench.node() as node:
        task = node.fetch()
        assert task is not None
        metrics = MetricRecord({**FIGURES["evaluate.test"], **counts_of("evaluate.test"), "num-examples": 30})
        node.push(Message(RecordDict({"metrics": metrics}), reply_to=task))
        wait_for(lambda: any(each == step for each, _ in study.server.told))
        study.restart()
        assert code_of(study.reply()) == "E_GATEWAY_ENDED"
    study.server.stop_at = ""
    study.asked = 1
    assert study.expect("evaluate.test", attempt=2).digest != header.digest
    found = study.sums("evaluate.test", study.ask("evaluate.test", answers=False))
    assert found.means["auroc_severe"] == pytest.approx(0.75, abs=1e-6)


@pytest.mark.parametrize("step", ["uploaded", "confirm", "reveal"])
def test_gateway_killed_before_a_last_step_helps_to_unmask_the_answers(study: Questions, step: str) -> None:
    study.expect("evaluate.test")
    study.server.stop_at = step
    reply = study.ask("evaluate.test")
    opened = study.server.round
    assert opened is not None
    opened.upload("north", reply.content.array_records[MASKED][WORDS].numpy())
    with ThreadPoolExecutor() as pool:
        unmasked = pool.submit(opened.unmask, 60)
        wait_for(lambda: any(each == step for each, _ in study.server.told))
        study.restart()
        study.server.stop_at = ""
        total, present = unmasked.result(120)
    assert present == ("north", "south", "west")
    assert sum_of(total, settings_of("evaluate.test"), 3).means["auroc_severe"] == pytest.approx(0.75, abs=1e-6)


def test_later_question_ends_the_earlier_one(study: Questions) -> None:
    """The server asks for the test before the sums of the calibration are revealed: they never are."""
    study.expect("evaluate.calibrate")
    study.ask("evaluate.calibrate")
    first = study.server.round
    assert first is not None
    study.expect("evaluate.test")
    study.sums("evaluate.test", study.ask("evaluate.test"))
    study.expect("evaluate.calibrate", attempt=2)
    assert code_of(study.ask("evaluate.calibrate", answers=False)) == "E_SECAGG_ROUND_OLD"


def test_folder_of_the_gateway_is_private(study: Questions, tmp_path: Path) -> None:
    study.expect("evaluate.test")
    study.ask("evaluate.test")
    for folder in ("answers", "secagg"):
        assert (study.site.folder / "gateway" / folder).stat().st_mode & 0o077 == 0
