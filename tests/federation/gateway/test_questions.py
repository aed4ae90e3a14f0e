"""Questions about models are counted. Thresholds in a question must follow from the calibrations of the sites."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from federation.approval.study_review import weakenings
from federation.gateway import questions, task_exchange, task_intake
from federation.gateway.questions import KeptAnswer, Question, Questions, questions_of
from federation.gateway.schema import Schema, work_out
from federation.protocol.calibration_answers import to_record
from federation.protocol.metric_allowlist import LABELS, class_counts, tail
from federation.protocol.pooled_calibration import pooled, settings_of
from federation.protocol.study_config import Study
from models.refusal import Refusal
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.evaluation.ladder import RUNGS
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench, Server
from tests.federation.gateway.messages import Model, model, moments, record_of, schema_for, train_here
from tests.federation.gateway.test_task_exchange import (  # noqa: F401
    is_refused,
    lines,
    schema,
    site,
    task_content,
    wait_for_reply,
    wait_until_idle,
    work,
)
from tests.helpers.module_time import set_time

RNG = np.random.default_rng(3)
SCHEMA = schema_for(500, 8)
TEST = Question("run", "evaluate.test", "model", "asked")
ANSWER = KeptAnswer({"auroc_severe": 0.8, "num-examples": 30}, {}, {})


def code(function: Callable[[], object]) -> str:
    try:
        function()
    except Refusal as refusal:
        return refusal.code
    return ""


# --- the number of questions ------------------------------------------------------------------------------


def test_repeated_question_gets_the_stored_answer_after_a_restart(tmp_path: Path) -> None:
    answer = KeptAnswer({"loss": 0.25}, {"moments": {"mean": ["float32", [2], ["c" * 64]]}}, {"c" * 64: b"\x00chunk"})
    Questions(tmp_path / "answers", a_month=5).keep(TEST, answer)
    assert Questions(tmp_path / "answers", a_month=5).earlier(TEST) == answer


@pytest.mark.parametrize(
    "other", [replace(TEST, asked="other thresholds"), replace(TEST, asked="x", run="another run")]
)
def test_different_question_of_the_same_kind_about_a_model_is_refused(tmp_path: Path, other: Question) -> None:
    kept = Questions(tmp_path, a_month=5)
    kept.keep(TEST, ANSWER)
    assert code(lambda: kept.earlier(other)) == "E_ASKED_ALREADY"
    assert kept.earlier(replace(TEST, kind="evaluate.embed")) is None
    assert kept.earlier(replace(TEST, model="another model")) is None


def test_questions_per_run_are_limited_for_each_kind(tmp_path: Path) -> None:
    kept = Questions(tmp_path, a_month=100)
    allowed = {"evaluate.test": 2}
    for number in range(2):
        question = replace(TEST, model=f"model {number}")
        kept.check_budget(question, allowed)
        kept.keep(question, ANSWER)
    third = replace(TEST, model="model 3")
    assert code(lambda: kept.check_budget(third, allowed)) == "E_QUESTIONS_RUN"
    assert code(lambda: kept.check_budget(replace(third, run="another"), allowed)) == ""
    assert code(lambda: kept.check_budget(replace(third, kind="evaluate.embed"), allowed)) == "E_QUESTIONS_RUN"


def test_questions_per_month_are_limited_over_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, now = Questions(tmp_path, a_month=3), time.time()
    for number in range(3):
        kept.keep(replace(TEST, model=f"model {number}", run=f"run {number}"), ANSWER)
    new = replace(TEST, model="model 9", run="run 9")
    assert code(lambda: kept.check_budget(new, {"evaluate.test": 1})) == "E_QUESTIONS_MONTH"
    set_time(monkeypatch, questions, time=lambda: now + 32 * 24 * 3600)
    assert code(lambda: kept.check_budget(new, {"evaluate.test": 1})) == ""
    set_time(monkeypatch, questions, time=lambda: now - 400 * 24 * 3600)  # the clock was set back
    assert code(lambda: kept.check_budget(new, {"evaluate.test": 1})) == "E_QUESTIONS_MONTH"


def test_means_of_almost_the_same_cohort_are_refused(tmp_path: Path) -> None:
    kept, before = Questions(tmp_path, a_month=100), {f"patient {number}" for number in range(30)}
    kept.keep(replace(TEST, kind="evaluate.embed"), ANSWER, before)

    def refused(cohort: set[str]) -> str:
        return code(lambda: kept.check_cohort(cohort, min_patients=10))

    assert refused(before) == ""
    assert refused({*before, "new"}) == refused(before - {"patient 3"}) == "E_COHORT_ALMOST_SAME"
    assert refused({*before - {f"patient {number}" for number in range(4)}, *"abcde"}) == "E_COHORT_ALMOST_SAME"
    assert refused({*before, *"abcdefghij"}) == ""
    kept.keep(replace(TEST, kind="evaluate.embed", model="later"), ANSWER, {*before, *"abcdefghij"})
    assert refused({*before, *"abcdefghijk"}) == "E_COHORT_ALMOST_SAME"


def test_scans_with_new_names_hide_no_single_patient(tmp_path: Path) -> None:
    """Prepared with other settings, a scan has another name, but nearly the same features."""
    kept, before = Questions(tmp_path, a_month=100), {number: "old" for number in range(60)}

    def names(cohort: dict[int, str]) -> set[str]:
        return {f"{patient}-{scan}" for patient, scan in cohort.items()}

    def refused(cohort: dict[int, str]) -> str:
        return code(lambda: kept.check_cohort(names(cohort), min_patients=10))

    kept.keep(replace(TEST, kind="evaluate.embed"), ANSWER, names(before))
    renamed = dict.fromkeys(before, "new")
    assert refused(renamed) == ""
    assert refused(renamed | {60: "new"}) == refused({**renamed, 60: "new", 61: "new"}) == "E_COHORT_ALMOST_SAME"
    few = before | dict.fromkeys(range(5), "new")
    assert refused(few) == refused(few | {60: "old"}) == "E_COHORT_ALMOST_SAME"
    assert refused(before | dict.fromkeys(range(10), "new")) == ""
    assert refused(renamed | dict.fromkeys(range(60, 70), "new")) == ""


@pytest.mark.parametrize(
    ("evaluation", "tests", "heads"),
    [
        ({}, 1, 0),
        ({"local_models": True}, 4, 0),
        ({"local_models": True, "leave_one_out": True, "fine_tune": True}, 10, 1),
        ({"local_models": True, "compared_sites": 2}, 3, 0),
    ],
)
def test_number_of_questions_is_derived_from_the_study(evaluation: Mapping[str, Any], tests: int, heads: int) -> None:
    table = {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2}
    allowed = questions_of(Study.model_validate({"study": table, "evaluation": evaluation}))
    assert (allowed["evaluate.test"], allowed["train.head"], allowed["evaluate.calibrate"]) == (tests, heads, 1)


def test_masked_study_does_not_ask_which_sites_a_patients_features_are_like() -> None:
    table = {"name": "trial", "rounds": 3, "sites": 3, "quorum": 3}
    plain = {"study": table, "strategy": {"name": "FedAvg"}}
    masked = {**plain, "aggregation": {"secure": True}}
    assert questions_of(Study.model_validate(plain))["evaluate.assign"] == 1
    assert questions_of(Study.model_validate(masked))["evaluate.assign"] == 0


@pytest.mark.parametrize(
    ("more", "audits"),
    [
        ({}, True),
        ({"evaluation": {"shortcut_audit": False}}, False),
        ({"network": {"norm": "group"}, "privacy": {"noise_multiplier": 1.0, "sample_rate": 0.1}}, False),
    ],
    ids=["usual", "without", "private"],
)
def test_schema_and_review_say_whether_the_study_has_an_audit(more: Mapping[str, Any], audits: bool) -> None:
    table = {"name": "trial", "rounds": 3, "sites": 3, "quorum": 3}
    study = Study.model_validate({"study": table, "strategy": {"name": "FedAvg"}, **more})
    assert work_out(study.model_dump_json().encode()).audits == study.audits == audits
    told = [line.split(":")[0] for line in weakenings(study)]
    assert ("Shortcut audit" in told) == audits
    assert ("Familiarity of scans" in told) == (study.privacy is None)


# --- through the gateway ----------------------------------------------------------------------------------


@pytest.fixture
def bench(site: Site, schema: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:  # noqa: F811
    monkeypatch.setattr(task_intake, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    bench = Bench(site, Server())
    yield bench
    bench.close()


def figures(**values: float) -> Callable[[Message], Message]:
    metrics = MetricRecord({**values, "num-examples": 30})
    return lambda task: Message(RecordDict({"metrics": metrics}), reply_to=task)


def trained_here(bench: Bench) -> Model:
    came_in = model(SCHEMA, RNG)
    train_here(bench.site, SCHEMA, came_in)
    return came_in


def test_repeated_question_is_answered_without_the_node(bench: Bench) -> None:
    came_in = trained_here(bench)
    with bench.node() as node:
        bench.server.give(task_content(came_in), message_type="evaluate.test")
        work(node, figures(auroc_severe=0.75))
        first = wait_for_reply(bench.server)
        wait_until_idle(bench)
        bench.server.give(task_content(came_in, **{"server-round": 9}), message_type="evaluate.test")
        assert node.fetch() is None
        second = wait_for_reply(bench.server, 2)
    assert dict(second.content["metrics"]) == dict(first.content["metrics"])  # type: ignore[arg-type]
    steps = ["evaluate.test", "answered: evaluate.test", "evaluate.test"]
    assert [(line.kind, line.verdict) for line in lines(bench)] == [(kind, "passed") for kind in steps * 2]


def test_stored_feature_statistics_are_sent_again_bit_identical(bench: Bench) -> None:
    came_in, out = trained_here(bench), moments(SCHEMA, RNG)
    records = {record: record_of(arrays) for record, arrays in out.items()}
    content = RecordDict({**records, "metrics": MetricRecord({"num-examples": 30})})  # type: ignore[arg-type]
    with bench.node() as node:
        bench.server.give(task_content(came_in), message_type="evaluate.embed")
        work(node, lambda task: Message(content, reply_to=task))
        wait_for_reply(bench.server)
        wait_until_idle(bench)
        bench.server.received.clear()
        bench.server.give(task_content(came_in), message_type="evaluate.embed")
        assert node.fetch() is None
        again = wait_for_reply(bench.server, 2)
    for record, arrays in out.items():
        for name, array in arrays.items():
            assert again.content.array_records[record][name].numpy().tobytes() == array.tobytes()


def test_question_after_one_patient_was_added_is_refused(bench: Bench) -> None:
    first, out = trained_here(bench), moments(SCHEMA, RNG)
    records = {record: record_of(arrays) for record, arrays in out.items()}
    content = RecordDict({**records, "metrics": MetricRecord({"num-examples": 30})})  # type: ignore[arg-type]
    with bench.node() as node:
        bench.server.give(task_content(first), message_type="evaluate.embed")
        work(node, lambda task: Message(content, reply_to=task))
        wait_for_reply(bench.server)
        wait_until_idle(bench)
        with Cohort(bench.site) as cohort:
            rows = [*cohort.patients(), PatientRow("newcomer", "train", "new.npy", 71.0, "M", True, True)]
            cohort.replace(rows, [], [])  # type: ignore[arg-type]
        bench.server.give(task_content(trained_here(bench)), message_type="evaluate.embed")
        assert node.fetch() is None
        assert wait_for_reply(bench.server, 2).error.reason == "E_COHORT_ALMOST_SAME"


def test_patient_who_joins_while_a_question_is_answered_is_in_no_statistics(bench: Bench) -> None:
    """A server may hold back the model until the cohort has changed."""
    out = moments(SCHEMA, RNG)
    records = {record: record_of(arrays) for record, arrays in out.items()}
    content = RecordDict({**records, "metrics": MetricRecord({"num-examples": 31})})  # type: ignore[arg-type]

    def answer(task: Message) -> Message:
        with Cohort(bench.site) as cohort:
            rows = [*cohort.patients(), PatientRow("newcomer", "train", "new.npy", 71.0, "M", True, True)]
            cohort.replace(rows, [], [])  # type: ignore[arg-type]
        return Message(content, reply_to=task)

    with bench.node() as node:
        bench.server.give(task_content(trained_here(bench)), message_type="evaluate.embed")
        work(node, answer)
        assert wait_for_reply(bench.server).error.reason == "E_COHORT_CHANGED"


def test_patient_who_joins_and_leaves_while_a_question_is_answered_is_in_no_statistics(bench: Bench) -> None:
    """The cohort is the same when the question arrives and when the answer leaves, and was another one in between."""

    def join_and_leave() -> None:
        with Cohort(bench.site) as cohort:
            before = cohort.patients()
            cohort.replace([*before, PatientRow("newcomer", "train", "new.npy", 71.0, "M", True, True)], [], [])
            cohort.replace(before, [], [])

    assert embedded(bench, join_and_leave) == "E_COHORT_CHANGED"


def test_cohort_that_is_deleted_and_made_again_spoils_a_question(bench: Bench) -> None:
    """Meanwhile it may have been that of other patients."""

    def make_again() -> None:
        with Cohort(bench.site) as cohort:
            before = cohort.patients()
        (bench.site.cohort_folder / "cohort.sqlite").unlink()
        with Cohort(bench.site) as cohort:
            cohort.replace(before, [], [])

    assert embedded(bench, make_again) == "E_COHORT_CHANGED"


def test_ingest_that_changes_nothing_spoils_no_question(bench: Bench) -> None:
    def again() -> None:
        with Cohort(bench.site) as cohort:
            cohort.replace(reversed(cohort.patients()), [], [])

    assert embedded(bench, again) == ""


def embedded(bench: Bench, meanwhile: Callable[[], object]) -> str:
    """Ask for means of features, and return the code of the answer; `meanwhile` runs while the node computes them."""
    records = {record: record_of(arrays) for record, arrays in moments(SCHEMA, RNG).items()}
    content = RecordDict({**records, "metrics": MetricRecord({"num-examples": 30})})  # type: ignore[arg-type]

    def answer(task: Message) -> Message:
        meanwhile()
        return Message(content, reply_to=task)

    with bench.node() as node:
        bench.server.give(task_content(trained_here(bench)), message_type="evaluate.embed")
        work(node, answer)
        reply = wait_for_reply(bench.server)
    return reply.error.reason if reply.has_error() else ""


def test_second_audit_of_the_same_model_is_refused(bench: Bench) -> None:
    came_in = trained_here(bench)
    with bench.node() as node:
        bench.server.give(task_content(came_in, audit=True), message_type="evaluate.test")
        work(node, figures(auroc_severe=0.75))
        wait_for_reply(bench.server)
        wait_until_idle(bench)
        bench.server.give(task_content(came_in, audit=False), message_type="evaluate.test")
        assert node.fetch() is None
        assert wait_for_reply(bench.server, 2).error.reason == "E_ASKED_ALREADY"


def test_question_about_a_model_not_trained_at_this_site_is_refused(bench: Bench) -> None:
    with bench.node() as node:
        bench.server.give(task_content(model(SCHEMA, RNG)), message_type="evaluate.test")
        work(node, figures(auroc_severe=0.75))
        is_refused(bench, "E_MODEL_UNTRAINED")
    assert not bench.server.received or b"auroc" not in b"".join(bench.server.received.values())


# --- thresholds -------------------------------------------------------------------------------------------


_SEVERE_TAILS = {*tail("rule_out", "severe"), *tail("rule_in", "severe")}


def calibration(shift: float) -> dict[str, float]:
    """The calibration that a site fits to its validation patients."""
    answer: dict[str, float] = {"num-examples": 30.0}
    for label in LABELS:
        answer |= {f"slope_{label}": 1.1 + shift, f"intercept_{label}": shift, f"covariance_{label}": 0.0}
        answer |= dict.fromkeys(class_counts(label), 27.0)
        answer |= dict.fromkeys(tail("rule_out", label), RUNGS[20 + round(10 * shift)])
        answer |= dict.fromkeys(tail("rule_in", label), RUNGS[30 + round(10 * shift)])
        answer |= {f"variance_slope_{label}": 0.2, f"variance_intercept_{label}": 0.2}
    return answer


OTHERS = [calibration(-0.2), calibration(0.3)]
# The site has 20 positive and 10 negative patients of one label. It reports no tails of the other one.
OWN = {name: value for name, value in calibration(0.1).items() if name not in {*class_counts("severe"), *_SEVERE_TAILS}}
OWN |= dict(zip(class_counts("pcr_positive"), (18.0, 9.0), strict=True))


def ask_at_thresholds(
    bench: Bench,
    came_in: Model,
    answers: list[dict[str, float]],
    change: Mapping[str, float],
    *,
    calibrated: bool = True,
) -> None:
    """Calibrate the model at the site, then ask for a test at the thresholds of `answers`, changed by `change`."""
    with bench.node() as node:
        if calibrated:
            content = task_content(came_in)
            content["typical"] = record_of(moments(SCHEMA, RNG)["looks"])
            bench.server.give(content, message_type="evaluate.calibrate")
            work(node, figures(**{name: value for name, value in OWN.items() if name != "num-examples"}))
            told_to_server = dict(wait_for_reply(bench.server).content["metrics"])  # type: ignore[arg-type]
            answers = [told_to_server if each is OWN else each for each in answers]  # rounded by the gateway
            wait_until_idle(bench)
        told = settings_of(*pooled(answers, is_robust=False)) | change
        content = task_content(came_in, **told)
        content["calibrations"] = to_record(answers)
        bench.server.give(content, message_type="evaluate.test")
        if (task := node.fetch()) is not None:
            node.push(figures(sens_at_rule_in_severe=0.9)(task))
        wait_for_reply(bench.server, 2 if calibrated else 1)


def test_thresholds_derived_from_the_calibrations_of_the_sites_are_accepted(bench: Bench) -> None:
    ask_at_thresholds(bench, trained_here(bench), [OTHERS[0], OWN, OTHERS[1]], {})
    assert not bench.server.last_reply().has_error()


@pytest.mark.parametrize(
    ("answers", "change"),
    [
        ([OTHERS[0], OWN], {"rule_in_severe": 0.7}),
        ([OTHERS[0], OWN], {"slope_severe": 2.0}),
        (OTHERS, {}),  # this site's own answer is not among them
        ([OTHERS[0], {**OWN, "rule_in_pcr_positive_00": 3.18}], {}),  # its own answer, changed
        ([OTHERS[0], {**OWN, "positives_pcr_positive": 300.0}], {}),  # its own answer, with more patients
        ([{**OTHERS[0], "rule_in_severe_00": 1e6}, OWN], {}),  # an answer outside the valid range
        ([{**OTHERS[0], "rule_in_severe": 0.7}, OWN], {}),  # a threshold, as earlier versions sent
    ],
)
def test_other_thresholds_are_refused(bench: Bench, answers: list[dict[str, float]], change: dict[str, float]) -> None:
    ask_at_thresholds(bench, trained_here(bench), answers, change)
    assert bench.server.last_reply().error.reason == "E_THRESHOLDS"


def test_thresholds_are_refused_if_the_site_was_not_calibrated(bench: Bench) -> None:
    ask_at_thresholds(bench, trained_here(bench), OTHERS, {}, calibrated=False)
    is_refused(bench, "E_THRESHOLDS")


@pytest.mark.parametrize("is_masked", [False, True])
def test_study_without_audit_that_asks_for_its_figures_is_refused(
    is_masked: bool,
    bench: Bench,
    schema: Callable[[Schema], None],  # noqa: F811
) -> None:
    """They cover training patients too, so the noise of a private study does not protect them."""
    schema(replace(SCHEMA, secure=is_masked, audits=False))
    bench.server.give(task_content(trained_here(bench), audit=True), message_type="evaluate.test")
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_AUDIT_KIND")


def test_masked_study_that_asks_at_thresholds_is_refused(
    bench: Bench,
    schema: Callable[[Schema], None],  # noqa: F811
) -> None:
    """Even at those that follow from the sites' own calibrations: nobody needs them to sum counts."""
    schema(replace(SCHEMA, secure=True))
    content = task_content(trained_here(bench), rule_in_severe=0.5)
    bench.server.give(content, message_type="evaluate.test")
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_SECAGG_THRESHOLDS")


@pytest.mark.parametrize(
    "record", [{}, {"slope_severe": 1.0}, {"name": [1.0]}, {"slope_severe": [1.0], "num-examples": []}]
)
def test_thresholds_without_valid_calibration_record_are_refused(bench: Bench, record: dict[str, Any]) -> None:
    content = task_content(trained_here(bench), rule_in_severe=0.5)
    if record:
        content["calibrations"] = ConfigRecord(record)
    bench.server.give(content, message_type="evaluate.test")
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_THRESHOLDS")


def test_unapproved_study_is_refused_and_stored_for_review(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[str] = []
    monkeypatch.setattr(task_intake, "names_by_digest", lambda folder: {})
    monkeypatch.setattr(task_intake, "schema_of", lambda study, *_: worked_out.append(study))
    bench.server.give(task_content(trained_here(bench)))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_STUDY_REFUSED")
    assert len(list((bench.site.folder / "studies").glob("*.json"))) == 1
    assert worked_out == []  # no network is built for an unapproved study


def test_study_that_starts_from_an_unapproved_release_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[str] = []
    monkeypatch.setattr(task_intake, "begins_from", lambda study: "a" * 64)
    monkeypatch.setattr(task_intake, "schema_of", lambda study, *_: worked_out.append(study))
    bench.server.give(task_content(trained_here(bench)))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_BEGIN_REFUSED")
    assert worked_out == []
