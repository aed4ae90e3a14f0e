"""Questions after the last round, masked: the sums of plaintext aggregation, over HTTP, and what survives a kill."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from numpy.typing import NDArray

from federation.coordinator import masked_round
from federation.coordinator.connected_sites import Records, Sites
from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.masked_questions import TRIES, MaskedSums, question_of
from federation.coordinator.masked_study import MaskedStudy
from federation.gateway import reasons as gateway_reasons
from federation.protocol import reasons as protocol_reasons
from federation.protocol.masked_replies import round_of
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, Kind
from federation.protocol.reply_validation import encode
from federation.protocol.summed_answers import SUMMED, Summed
from federation.secure_aggregation.answer_vector import Answer, AnswerSettings, answer_vector
from models.familiarity import Moments as SiteMoments
from models.familiarity import pool_moments
from models.refusal import Refusal
from tests.federation.coordinator.test_masked_strategy import (  # noqa: F401
    BUFFERS,
    MODEL,
    NAMES,
    PATIENTS,
    RUN,
    STUDY,
    Hospitals,
    folder,
    until_signed,
)

ROUNDS = 10
KINDS: tuple[Kind, ...] = tuple(SUMMED)
LENGTHS = {"moments": 6, "looks": APPEARANCE_SIZE}


def answer_of(node: int, kind: Kind) -> Answer:
    """What a hospital answers; the same for the same question. The second hospital lacks the first figure."""
    rng, table = np.random.default_rng([node, KINDS.index(kind)]), SUMMED[kind]
    return Answer(
        PATIENTS[node],
        {name: int(rng.integers(0, 20)) for name in table.counts},
        {name: float(rng.uniform()) for at, name in enumerate(table.means) if at or node != 2},
        {name: (rng.normal(size=LENGTHS[name]), rng.uniform(0, 3, size=LENGTHS[name])) for name in table.moments},
    )


@dataclass
class Answering(Hospitals):
    """Hospitals that answer questions. `fails`: the nodes that fail, by the number of the batch of messages.

    `refuses`: nodes that refuse with a reason.
    """

    fails: Mapping[int, set[int]] = field(default_factory=dict)
    refuses: Mapping[int, Refusal] = field(default_factory=dict)
    batches: int = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        self.batches += 1
        return super().send_and_receive(messages, timeout=timeout)

    def masked_reply(self, node: int, message: Message) -> tuple[NDArray, Callable[[], None]]:
        kind = cast(Kind, message.metadata.message_type)
        if node in self.refuses:
            raise self.refuses[node]
        if node in self.fails.get(self.batches, set()):
            raise RuntimeError("the node failed")
        header, told = self.begin(node, round_of(kind, ROUNDS))
        settings = AnswerSettings.model_validate(told)
        records = {**message.content.array_records, **message.content.config_records}
        question = question_of(RUN, kind, cast(Records, records))
        assert (header.kind, header.model, header.asked) == (kind, question.model, question.asked)
        assert header.settings == settings.digest
        return self.mask(node, header, answer_vector(answer_of(node, kind), settings))


def sums_of(hospitals: Answering, said: list[str], say: Callable[[str], None] | None = None) -> MaskedSums:
    masked = MaskedStudy(
        run=RUN,
        study=STUDY,
        roster=hospitals.roster,
        patients=sum(PATIENTS[node] for node in hospitals.nodes),
        folder=hospitals.folder / "masked",
        names=NAMES,
        round_seconds=600.0,
        server_folder=hospitals.folder / "server",
        last_seconds=60.0,
    )
    sites = Sites(cast(EagerGrid, hospitals), NAMES, {}, {})
    return MaskedSums(masked, sites, ROUNDS, LENGTHS, say or said.append, [])


def records_of(**config: float) -> Records:
    return {"arrays": encode(MODEL), "buffers": encode(BUFFERS), "config": ConfigRecord(config)}


def check(found: tuple[Summed, dict[str, Any]] | None, kind: Kind, nodes: list[int]) -> None:
    """Compare sums with those of the single answers."""
    assert found is not None
    summed, moments = found
    answers = [answer_of(node, kind) for node in nodes]
    patients = [answer.patients for answer in answers]
    assert (summed.sites, summed.patients) == (len(nodes), sum(patients))
    assert summed.counts == {name: sum(a.counts[name] for a in answers) for name in SUMMED[kind].counts}
    for name in SUMMED[kind].means:
        having = [answer for answer in answers if name in answer.means]
        total = sum(answer.patients for answer in having)
        mean = sum(answer.patients * answer.means[name] for answer in having) / total
        assert summed.means[name] == pytest.approx(mean, abs=1e-7)
        assert summed.known[name] == pytest.approx(total / sum(patients), abs=1e-7)
    for name in SUMMED[kind].moments:
        sites = [SiteMoments(*answer.moments[name], answer.patients) for answer in answers]  # type: ignore[arg-type]
        mean_of, variance_of = pool_moments(sites, robust=False)
        np.testing.assert_allclose(moments[name].mean, mean_of, atol=1e-6)
        np.testing.assert_allclose(moments[name].variance, variance_of, atol=1e-6)
        assert (moments[name].mean.dtype, moments[name].patients) == (np.float32, sum(patients))


def end(hospitals: Answering) -> None:
    for thread in hospitals.threads:
        thread.join(60)


def test_sums_are_those_of_plaintext_aggregation(folder: Path) -> None:  # noqa: F811
    hospitals, said = Answering(folder), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        for kind in KINDS:
            check(sums.ask(kind, records_of(), kind), kind, [1, 2, 3])
        end(hospitals)
    assert hospitals.problems == []
    assert [(entry["step"], entry["sites"], entry["refused"]) for entry in sums.history] == [
        (kind, ["north", "south", "west"], {}) for kind in KINDS
    ]
    assert all(entry["ledger"] for entry in sums.history)
    assert not (sums.folder / "round.json").exists()


def test_sum_without_a_hospital_that_failed(folder: Path) -> None:  # noqa: F811
    hospitals, said = Answering(folder, count=4, fails={1: {2}}), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        check(sums.ask("evaluate.test", records_of(), "test"), "evaluate.test", [1, 3, 4])
    assert sums.history[0]["refused"] == {"south": "E_SITE_FAILED"}
    assert "test without south: E_SITE_FAILED" in said


def test_next_run_asks_the_same_hospitals(folder: Path) -> None:  # noqa: F811
    """The one that was missing is asked no more, for the others would refuse; about other kinds it is asked."""
    hospitals, said = Answering(folder, count=4, fails={1: {2}}), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        sums.ask("evaluate.test", records_of(), "test")
    next_run = sums_of(hospitals, said).masked
    assert next_run.summed_over("evaluate.test") == ("east", "north", "west")
    assert next_run.on_roster(NAMES, "evaluate.test") == [1, 3, 4]
    assert next_run.on_roster(NAMES, "evaluate.embed") == [1, 2, 3, 4]


def test_lost_question_is_asked_again(folder: Path) -> None:  # noqa: F811
    hospitals, said = Answering(folder, fails={1: {2}}), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        check(sums.ask("evaluate.calibrate", records_of(), "calibration"), "evaluate.calibrate", [1, 2, 3])
    assert hospitals.batches == 2
    assert sums.history[0]["refused"] == {}


def test_run_goes_on_without_a_question_that_is_lost_repeatedly(folder: Path) -> None:  # noqa: F811
    hospitals, said = Answering(folder, fails={batch: {2} for batch in range(1, TRIES + 1)}), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        assert sums.ask("evaluate.calibrate", records_of(), "calibration") is None
        assert hospitals.batches == TRIES
        assert said[-1] == "calibration: the sum is lost"
        assert sums.ask("evaluate.calibrate", records_of(), "calibration") is None
        assert hospitals.batches == TRIES, "it is not asked again"
        check(sums.ask("evaluate.test", records_of(), "test"), "evaluate.test", [1, 2, 3])
    assert (sums.history[0]["sites"], sums.history[0]["refused"]["south"]) == ([], "E_SITE_FAILED")


@pytest.mark.parametrize("reason", [protocol_reasons.EMBEDDINGS, gateway_reasons.COHORT_ALMOST_SAME])
def test_question_that_a_needed_hospital_refuses_for_good_is_asked_once(folder: Path, reason: Any) -> None:  # noqa: F811
    hospitals, said = Answering(folder, refuses={2: Refusal(reason)}), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        assert sums.ask("evaluate.embed", records_of(), "features") is None
    assert hospitals.batches == 1
    assert sums.history[0]["refused"]["south"] == reason.code


# --- a killed server --------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill(_: str) -> None:
    raise Killed


def ask_and_die(hospitals: Answering, kind: Kind) -> None:
    """Ask until the first line is said, which comes when a step took too long."""
    sums = sums_of(hospitals, [], kill)
    sums.masked.__dict__["last_seconds"] = 1.0
    with pytest.raises(Killed), sums.serving():
        sums.ask(kind, records_of(), "x")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_round, "SPARE_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
def test_sum_whose_shares_may_be_revealed_is_finished_after_a_kill(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    until_signed(monkeypatch)
    hospitals, said = Answering(folder, stop_before=dict.fromkeys(NAMES, "reveal")), list[str]()
    ask_and_die(hospitals, "evaluate.test")
    hospitals.stop_before = {}
    again = sums_of(hospitals, said)
    with again.serving():
        threads = [
            threading.Thread(target=lambda n=node, k=known: [do() for _, do in hospitals.last_steps(n, *k)])
            for node, known in hospitals.rounds.items()
        ]
        for thread in threads:
            thread.start()
        check(again.ask("evaluate.test", records_of(), "test"), "evaluate.test", [1, 2, 3])
        for thread in threads:
            thread.join(60)
    assert hospitals.batches == 1, "the hospitals were not asked again"
    assert again.history[0]["sites"] == ["north", "south", "west"]


@pytest.mark.usefixtures("impatient")
def test_question_of_which_no_share_was_revealed_is_asked_anew_after_a_kill(folder: Path) -> None:  # noqa: F811
    hospitals = Answering(folder, stop_before=dict.fromkeys(NAMES, "confirm"))
    ask_and_die(hospitals, "evaluate.test")
    hospitals.stop_before = {}
    again = sums_of(hospitals, [])
    with again.serving():
        check(again.ask("evaluate.test", records_of(), "test"), "evaluate.test", [1, 2, 3])
    assert hospitals.batches == 2
    assert {header.attempt for _, header in hospitals.rounds.values()} == {2}


def test_question_killed_before_the_replies_is_asked_anew(folder: Path) -> None:  # noqa: F811
    hospitals = Answering(folder, fails={1: {1, 2, 3}})
    sums = sums_of(hospitals, [])

    def die(*_: object, **__: object) -> Iterator[Message]:
        raise Killed

    hospitals.__dict__["send_and_receive"] = die
    with pytest.raises(Killed), sums.serving():
        sums.ask("evaluate.calibrate", records_of(), "calibration")
    del hospitals.__dict__["send_and_receive"]
    hospitals.fails = {}
    again = sums_of(hospitals, [])
    with again.serving():
        check(again.ask("evaluate.calibrate", records_of(), "calibration"), "evaluate.calibrate", [1, 2, 3])


def test_resumed_run_has_the_sums_of_earlier_questions(folder: Path) -> None:  # noqa: F811
    """The hospitals answer nothing about them any more."""
    hospitals, said = Answering(folder), list[str]()
    sums = sums_of(hospitals, said)
    with sums.serving():
        before = {kind: sums.ask(kind, records_of(), kind) for kind in KINDS[:2]}
        end(hospitals)
    asked = hospitals.batches  # a hospital that is slow is asked again
    again = sums_of(hospitals, said)
    with again.serving():
        for kind in KINDS[:2]:
            again.history.clear()
            check(again.ask(kind, records_of(), kind), kind, [1, 2, 3])
            assert again.history == [entry for entry in sums.history if entry["step"] == kind]
            first, second = before[kind], again.ask(kind, records_of(), kind)
            assert first is not None and second is not None and first[0] == second[0]
            for name, moments in first[1].items():
                assert moments.mean.tobytes() == second[1][name].mean.tobytes()
        assert hospitals.batches == asked
        check(again.ask("evaluate.test", records_of(), "test"), "evaluate.test", [1, 2, 3])
        assert again.ask("evaluate.calibrate", records_of(slope_severe=1.0), "calibration") is None
    assert said[-1] == "calibration is left out: the hospitals have answered a different question of this kind"
    assert hospitals.batches == 3


@pytest.mark.usefixtures("impatient")
def test_sum_that_stays_half_revealed_is_given_up_and_never_asked_again(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    until_signed(monkeypatch)
    hospitals, said = Answering(folder, stop_before={1: "reveal"}), list[str]()
    sums = sums_of(hospitals, said)
    sums.masked.__dict__["last_seconds"] = 1.0
    with sums.serving():
        assert sums.ask("evaluate.calibrate", records_of(), "calibration") is None
    assert hospitals.batches == 1
    assert not (sums.folder / "round.json").exists()
