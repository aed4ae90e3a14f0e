"""Sums of answers to questions about a model: exact, and none of the ways to learn a single answer works."""

import itertools
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.secure_aggregation.answer_vector import Answer, AnswerSettings, AnswerSum, answer_vector, sum_of
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.fixed_point import COUNT_LIMIT
from federation.secure_aggregation.keys import public_key
from federation.secure_aggregation.masking import Masks
from federation.secure_aggregation.messages import Advertised, Header, Uploaded, sign_of
from federation.secure_aggregation.site_round import Limits, pair_mask_key
from federation.secure_aggregation.store import Attempt, Store
from tests.federation.secure_aggregation.rig import STEPS, QuestionRig, Rig, digest, mask, play, refused
from tests.federation.secure_aggregation.test_attacks import finish
from tests.federation.secure_aggregation.test_rounds import check_pattern

SETTINGS = AnswerSettings(
    kind="evaluate.test", counts=("count",), means=("auroc",), moments={"looks": 2}, patients=100, sites=3
)
ANSWER = Answer(50, {"count": 3}, {"auroc": 0.5}, {"looks": (np.zeros(2), np.ones(2))})


@pytest.fixture
def rig(tmp_path: Path) -> QuestionRig:
    return QuestionRig(tmp_path, 5)


def check_plain(found: AnswerSum, answers: list[Answer]) -> None:
    """Compare with what plaintext aggregation of the single answers makes."""
    patients = np.array([answer.patients for answer in answers])
    assert (found.sites, found.patients) == (len(answers), patients.sum())
    assert found.counts == {name: sum(a.counts[name] for a in answers) for name in answers[0].counts}
    for name in {name for answer in answers for name in answer.means}:
        having = [answer for answer in answers if name in answer.means]
        total = sum(answer.patients for answer in having)
        assert found.means[name] == pytest.approx(
            sum(answer.patients * answer.means[name] for answer in having) / total, abs=1e-6
        )
        assert found.known[name] == pytest.approx(total / patients.sum(), abs=1e-6)
    for record in answers[0].moments:
        means, variances = (np.array([answer.moments[record][at] for answer in answers]) for at in (0, 1))
        pooled = np.average(means, axis=0, weights=patients)
        spread = np.average(variances + (means - pooled) ** 2, axis=0, weights=patients)
        np.testing.assert_allclose(found.moments[record][0], pooled, atol=1e-6)
        np.testing.assert_allclose(found.moments[record][1], spread, atol=1e-6)


# --- the sums ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 10, pytest.param(30, marks=pytest.mark.slow)])
def test_sums_are_those_of_plaintext_aggregation(tmp_path: Path, count: int) -> None:
    rig = QuestionRig(tmp_path, count, restarts=count < 10)
    total = play(rig, rig.header()).unmask()
    assert np.array_equal(total, rig.plain_sum(rig.names))
    check_plain(sum_of(total, rig.question, count), list(rig.answers.values()))


def test_sum_without_a_hospital_that_dropped_out(rig: QuestionRig) -> None:
    total = play(rig, rig.header(), {rig.names[1]: "upload"}).unmask()
    check_plain(sum_of(total, rig.question, 4), [rig.answers[name] for name in rig.names if name != rig.names[1]])


@pytest.mark.parametrize("step", STEPS)
def test_one_hospital_of_five_may_leave_at_any_step_and_two_may_not(tmp_path: Path, step: str) -> None:
    check_pattern(tmp_path / "one", {"hospital-003": step}, make=QuestionRig)
    check_pattern(tmp_path / "two", {"hospital-003": step, "hospital-000": step}, make=QuestionRig)


def test_counts_are_exact_for_the_largest_study() -> None:
    settings = SETTINGS.model_copy(update={"patients": 2**32, "sites": 100})
    words = answer_vector(replace(ANSWER, counts={"count": COUNT_LIMIT - 1}), settings)
    total = np.sum([words] * 100, axis=0, dtype=np.uint32)
    assert sum_of(total, settings, 100).counts == {"count": 100 * (COUNT_LIMIT - 1)}


@pytest.mark.parametrize(
    ("different", "code"),
    [
        ({"counts": {"count": COUNT_LIMIT}}, "E_SECAGG_RANGE"),
        ({"counts": {"count": -1}}, "E_SECAGG_RANGE"),
        ({"means": {"auroc": float("nan")}}, "E_SECAGG_RANGE"),
        ({"moments": {"looks": (np.zeros(2), np.full(2, np.inf))}}, "E_SECAGG_RANGE"),
        ({"moments": {"looks": (np.full(2, 6000.0), np.ones(2))}}, "E_SECAGG_RANGE"),
        ({"patients": 101}, "E_SECAGG_WEIGHT"),
        ({"patients": 0}, "E_SECAGG_WEIGHT"),
    ],
)
def test_numbers_that_cannot_be_summed_are_refused(different: Mapping[str, object], code: str) -> None:
    assert refused(lambda: answer_vector(replace(ANSWER, **different), SETTINGS)) == code  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "different",
    [
        {"counts": {"other": 1}},
        {"means": {"other": 1.0}},
        {"moments": {}},
        {"moments": {"looks": (np.zeros(2), np.zeros(3))}},
        {"moments": {"looks": (np.zeros(2), np.zeros(2)), "more": (np.zeros(1), np.zeros(1))}},
    ],
)
def test_answer_of_another_form_is_an_error(different: Mapping[str, object]) -> None:
    with pytest.raises(ValueError, match="settings"):
        answer_vector(replace(ANSWER, **different), SETTINGS)  # type: ignore[arg-type]


def test_figure_that_no_hospital_has_is_missing_and_missing_counts_are_zero() -> None:
    found = sum_of(answer_vector(replace(ANSWER, counts={}, means={}), SETTINGS), SETTINGS, 1)
    assert (found.means, found.known, found.counts) == ({}, {}, {"count": 0})


def test_noise_is_refused() -> None:
    for seed in range(200):
        noise = np.random.default_rng(seed).integers(0, 2**32, SETTINGS.words, dtype=np.uint32)
        assert refused(lambda noise=noise: sum_of(noise, SETTINGS, 3)) == "E_SECAGG_RANGE"


# --- the same question again ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        {"attempt": 2},
        {"attempt": 2, "asked": digest(10)},  # the same model and kind with other settings
        {"run": "covid-2"},
        {"run": "covid-2", "asked": digest(10)},
        {"number": 9},
    ],
)
def test_question_of_a_kind_is_summed_once_for_a_model(rig: QuestionRig, again: Mapping[str, object]) -> None:
    play(rig, rig.header())
    for name in rig.names:
        header = rig.header(**again)  # type: ignore[arg-type]
        assert refused(lambda name=name, header=header: rig.site(name, header).advertise()) == "E_SECAGG_MODEL_USED"


def test_training_and_each_kind_of_question_are_summed_once_each(rig: QuestionRig) -> None:
    training = Rig(rig.folder, 5, stores=rig.stores)
    play(training, training.header(1))
    play(rig, rig.header(4, kind="evaluate.calibrate"))
    play(rig, rig.header(5, kind="evaluate.test"))
    assert refused(lambda: play(training, training.header(6))) == "E_SECAGG_MODEL_USED"


def test_two_runs_that_ask_at_once_reveal_one_sum(rig: QuestionRig) -> None:
    """Both runs come as far as the signatures before one is unmasked."""
    one, two = rig.header(), rig.header(run="covid-2")
    first, second = play(rig, one, until="confirm"), play(rig, two, until="confirm")
    assert first.confirmations is not None and second.confirmations is not None
    for name in rig.names:
        rig.site(name, one).reveal(first.confirmations)
        site = rig.site(name, two)
        assert refused(lambda site=site: site.reveal(second.confirmations)) == "E_SECAGG_MODEL_USED"


def test_restored_hospital_does_not_get_the_others_to_sum_again(rig: QuestionRig) -> None:
    """Its old folder has forgotten the sum. It counts as one that helps the server."""
    name = rig.names[0]
    state, backup = rig.folder / name / "state", rig.folder / "backup"
    rig.store(name)
    rig.stores.pop(name).close()
    shutil.copytree(state, backup)
    play(rig, rig.header())
    rig.stores.pop(name).close()
    shutil.rmtree(state)
    shutil.copytree(backup, state)
    answers = [refused(rig.site(each, rig.header(attempt=2)).advertise) for each in rig.names]
    assert answers == ["", *["E_SECAGG_MODEL_USED"] * 4]
    own = Advertised(hospitals=(rig.site(name, rig.header(attempt=2)).advertise(),))
    assert refused(lambda: rig.site(name, rig.header(attempt=2)).share(own)) == "E_SECAGG_TOO_FEW"


@pytest.mark.parametrize("until", ["advertise", "share", "upload", "confirm"])
def test_hospital_that_was_restarted_answers_the_same_question_in_a_new_attempt(rig: QuestionRig, until: str) -> None:
    play(rig, rig.header(), until=until)
    shutil.rmtree(rig.folder / rig.names[0] / "witness")
    assert refused(rig.site(rig.names[0], rig.header()).advertise) == "E_SECAGG_LOST"
    total = play(rig, rig.header(attempt=2)).unmask()
    assert np.array_equal(total, rig.plain_sum(rig.names))


def test_hospital_that_began_the_test_answers_nothing_about_the_calibration(rig: QuestionRig) -> None:
    calibration, test = rig.header(5, kind="evaluate.calibrate"), rig.header(6)
    server = play(rig, calibration, until="confirm")
    rig.site(rig.names[0], test).advertise()
    site = rig.site(rig.names[0], calibration)
    assert server.confirmations is not None
    for step in (site.advertise, lambda: site.reveal(server.confirmations)):
        assert refused(step) == "E_SECAGG_ROUND_OLD"


# --- different questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "other"),
    [("asked", digest(10)), ("kind", "evaluate.calibrate"), ("model", digest(3)), ("settings", "f" * 64)],
)
def test_hospital_that_was_asked_something_else_is_noticed(rig: QuestionRig, what: str, other: str) -> None:
    header = rig.header()
    different = header.model_copy(update={what: other})
    signed = [rig.site(name, different if name == rig.names[2] else header).advertise() for name in rig.names]
    site = rig.site(rig.names[0], header)
    assert refused(lambda: site.share(Advertised(hospitals=tuple(signed)))) == "E_SECAGG_UNLIKE"
    relabelled = signed[2].model_copy(update={"told": header.told})  # the server hides the difference
    forged = Advertised(hospitals=(*signed[:2], relabelled, *signed[3:]))
    assert refused(lambda: site.share(forged)) == "E_SECAGG_SIGNATURE"


@pytest.mark.parametrize("what", ["asked", "kind", "model", "settings", "attempt", "run"])
def test_answers_to_different_questions_sum_to_noise(rig: QuestionRig, what: str) -> None:
    """Even if no gateway compared anything: the masks depend on all that is asked."""
    others = {"asked": digest(10), "kind": "evaluate.embed", "attempt": 2, "run": "covid-2"}
    header = rig.header()
    different = header.model_copy(update={what: others.get(what, "f" * 64)})
    private = {name: bytes([at + 1, *range(31)]) for at, name in enumerate(rig.names)}

    def total(second: Header) -> np.ndarray:
        words = rig.plain_sum(rig.names)
        for (at, one), (_, other) in itertools.permutations(enumerate(rig.names), 2):
            told = second if at == 2 else header
            key = pair_mask_key(private[one], public_key(private[other]), told, "0" * 64, one, other)
            Masks([(key, sign_of(one, other))]).apply(words)
        return words

    assert np.array_equal(total(header), rig.plain_sum(rig.names))
    assert refused(lambda: sum_of(total(different), rig.question, 5)) == "E_SECAGG_RANGE"


def test_header_of_training_is_none_of_a_question_and_reverse(rig: QuestionRig) -> None:
    about = rig.header().model_dump(mode="json")
    for wrong in ({"kind": "train"}, {"asked": "0" * 64}):
        assert refused(lambda wrong=wrong: Header.parse(canonical(about | wrong))) == "E_SECAGG_MESSAGE"
    header = rig.header()
    server = play(rig, header, until="upload")
    training = Rig(rig.folder, 5, stores=rig.stores).header(4)
    assert server.uploaded is not None
    site = rig.site(rig.names[0], training)
    for step in (site.advertise, lambda: site.confirm(everybody(rig))):
        assert refused(step) == "E_SECAGG_STEP"


def everybody(rig: QuestionRig) -> Uploaded:
    return Uploaded(hospitals=tuple(rig.names))


# --- who is in the sum ------------------------------------------------------------------------------------


def test_held_back_answer_stays_masked_and_there_is_no_second_sum(rig: QuestionRig) -> None:
    """The server says that a hospital dropped out although its answer arrived, and asks for the others' sum."""
    header, victim = rig.header(), rig.names[0]
    server = play(rig, header, until="share")
    held_back = mask(rig, victim, header, server)
    for name in rig.names[1:]:
        server.upload(name, mask(rig, name, header, server))
    uploaded = server.freeze_uploaded()
    assert refused(lambda: rig.site(victim, header).confirm(uploaded)) == "E_SECAGG_LEFT_OUT"
    assert np.array_equal(finish(rig, server), rig.plain_sum(rig.names[1:]))
    assert not np.array_equal(held_back, rig.words(victim))
    for again in (rig.header(attempt=2), rig.header(run="covid-2"), rig.header(7)):
        assert refused(lambda again=again: play(rig, again)) == "E_SECAGG_MODEL_USED"


def test_hospital_reveals_one_share_of_each_other_hospital(rig: QuestionRig) -> None:
    header, dropped = rig.header(), rig.names[1]
    server = play(rig, header, {dropped: "upload"}, until="confirm")
    assert server.confirmations is not None
    for name in server.uploaded.hospitals if server.uploaded else ():
        site = rig.site(name, header)
        told = site.reveal(server.confirmations)
        assert set(told.keys) == {dropped} and not set(told.seeds) & set(told.keys)
        assert refused(lambda site=site: site.confirm(everybody(rig))) == "E_SECAGG_UPLOADED_TWICE"


def test_changes_of_the_sum_are_counted_over_rounds_and_questions(tmp_path: Path) -> None:
    rig = QuestionRig(tmp_path, 5, limits=Limits(max_changes=1))
    play(rig, rig.header(4, kind="evaluate.calibrate"), {rig.names[0]: "upload"})
    assert refused(lambda: play(rig, rig.header(5), {rig.names[1]: "upload"})) == "E_SECAGG_CHANGES"


# --- a store of the version before ------------------------------------------------------------------------


def test_store_of_the_earlier_layout_still_knows_the_sums_of_training(tmp_path: Path) -> None:
    folder, witness = tmp_path / "state", tmp_path / "witness"
    Store(folder, witness).close()
    with closing(sqlite3.connect(folder / "rounds.sqlite", isolation_level=None)) as database:
        database.executescript(
            "ALTER TABLE runs DROP COLUMN study;"
            "DROP TABLE revealed; CREATE TABLE revealed (model TEXT PRIMARY KEY) STRICT;"
            f"INSERT INTO revealed VALUES ('{digest(1)}'); PRAGMA user_version = 1;"
        )
    for _ in range(2):
        kept = Store(folder, witness)
        assert kept.was_revealed(digest(1), "train")
        assert not kept.was_revealed(digest(1), "evaluate.test") and not kept.was_revealed(digest(2), "train")
        kept.begin(Attempt("covid-1", 1, 1))
        kept.close()
    kept = Store(folder, witness)
    kept.advance(Attempt("covid-1", 1, 1, 5), revealed=(digest(1), "evaluate.test"))
    again = lambda: kept.advance(Attempt("covid-1", 1, 1, 5), revealed=(digest(1), "evaluate.test"))  # noqa: E731
    assert refused(again) == "E_SECAGG_MODEL_USED"
