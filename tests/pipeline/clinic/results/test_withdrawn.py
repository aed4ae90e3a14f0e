"""What was sent and holds no longer is withdrawn. The receivers here keep each result by its identity, as many do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.clinic.records import Answer, Correction
from pipeline.clinic.results.fhir_report import diagnostic_report
from pipeline.clinic.results.oru_message import oru_message
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import Clinic, ClinicSettings
from pipeline.clinic.store import new_id
from pipeline.scoring.score import Score
from tests.helpers.scored_answers import answer_to, series_of
from tests.pipeline.clinic.results.receivers import FhirServer, Receiver
from tests.pipeline.clinic.results.test_messages import PATIENT, states, stored
from tests.pipeline.clinic.results.test_verified import corrected_by_hand, decision

ACCEPTED, REJECTED = ("accepted", None, Correction()), ("rejected", "other", Correction())
UNUSABLE = ("corrected", "lungs", Correction(lungs_usable=False))
UNUSABLE_AND_HIGH = ("corrected", "lungs", Correction(levels={"severe": "high"}, lungs_usable=False))
LUNGS, DENSITIES = {"both", "right", "left"}, {"ground_glass", "consolidation"}


@pytest.fixture(scope="module")
def answer(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / new_id(), patient=PATIENT)


class Systems:
    """A clinic with a FHIR server and an HL7 receiver, and what these two hold now."""

    def __init__(self, clinic: Clinic, server: FhirServer, receiver: Receiver, answer: Answer) -> None:
        self.clinic, self.server, self.receiver = clinic, server, receiver
        self.answer = stored(clinic, answer)

    def after(self, *decisions: tuple[Any, Any, Correction]) -> "Systems":
        """Deliver what waits, and then each decision."""
        states(self.clinic, self.answer)
        for verdict, reason, correction in decisions:
            with self.clinic.store() as store:
                now = store.answers.get(self.answer.id)
                proposal = Proposal(verdict, now.revision, reason, correction=correction)
                targets = Outbox(self.clinic).targets(now, verdict)
                decide(store, now.id, proposal, by="reader", person="Leser^Anna", targets=targets)
            assert {state for _, state, _ in states(self.clinic, self.answer)} == {"sent"}
        return self

    def lungs(self) -> dict[str, dict[str, Any]]:
        """The server's observations of lungs, by side."""
        named = {each.get("code", {}).get("text", ""): each for each in self.server.kept.values()}
        start = "Volume of the lungs, "
        return {text.removeprefix(start): each for text, each in named.items() if text.startswith(start)}

    def obx(self) -> dict[str, tuple[str, str]]:
        return held(*self.receiver.received)


def held(*messages: bytes) -> dict[str, tuple[str, str]]:
    """Status and value of each result, by the code of OBX-3, that a receiver holds after the messages."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for message in messages:
        for line in message.decode().split("\r"):
            if line.startswith("OBX"):
                obx = line.split("|")
                found[obx[3], obx[4]] = (obx[11], obx[5])
    return {code.split("^")[0]: each for (code, _), each in found.items()}


@contextmanager
def systems(folder: Path, answer: Answer, *, send: str, ids: str = "client") -> Iterator[Systems]:
    server, receiver = FhirServer(), Receiver()
    with receiver.running() as port, server.running() as url:
        table = {
            "fhir": {"url": url, "send": send, "ids": ids},
            "hl7": {"host": "127.0.0.1", "port": port, "send": send},
        }
        yield Systems(Clinic(folder, ClinicSettings.model_validate({"results": table})), server, receiver, answer)


@pytest.mark.parametrize("ids", ["client", "server"])
@pytest.mark.parametrize(
    ("send", "decisions", "status"),
    [
        ("always", [UNUSABLE], "final"),
        ("accepted", [ACCEPTED, UNUSABLE], "corrected"),
        ("accepted", [ACCEPTED, UNUSABLE, UNUSABLE_AND_HIGH], "corrected"),
    ],
    ids=["after the model's own", "after an acceptance", "twice"],
)
def test_lungs_that_were_sent_are_withdrawn_if_their_mask_is_not_usable(
    send: str, decisions: list[Any], status: str, ids: str, answer: Answer, tmp_path: Path
) -> None:
    with systems(tmp_path, answer, send=send, ids=ids) as both:
        both.after(*decisions[:-1])
        assert both.lungs().keys() == LUNGS and both.obx().keys() > DENSITIES
        number = len(both.server.kept)
        both.after(decisions[-1])
        lungs, obx = both.lungs(), both.obx()
        assert len(both.server.kept) == number, "the same resources"
        assert {each["status"] for each in lungs.values()} == {"entered-in-error"}
        assert not any({"valueQuantity", "component"} & each.keys() for each in lungs.values())
        assert {obx[density] for density in DENSITIES} == {("D", "")}
        others = [each for each in both.server.kept.values() if each not in lungs.values()]
        assert {each["status"] for each in others} == {status}
        assert {each for code, (each, _) in obx.items() if code not in DENSITIES} == {status[0].upper()}
        (report,) = (each for (kind, _), each in both.server.kept.items() if kind == "DiagnosticReport")
        assert len(report["result"]) == len(others) - 1, "the report refers to none of them"


@pytest.mark.parametrize("decisions", [[UNUSABLE], [UNUSABLE, UNUSABLE_AND_HIGH]], ids=["once", "twice"])
def test_lungs_that_were_never_sent_are_not_withdrawn(decisions: list[Any], answer: Answer, tmp_path: Path) -> None:
    with systems(tmp_path, answer, send="accepted") as both:
        both.after(*decisions)
        assert both.lungs() == {}
        assert not DENSITIES & both.obx().keys()


def test_lungs_are_sent_again_if_a_later_decision_finds_them_usable(answer: Answer, tmp_path: Path) -> None:
    with systems(tmp_path, answer, send="always") as both:
        both.after()
        before, values = both.lungs(), both.obx()
        both.after(UNUSABLE, ACCEPTED)
        lungs, obx = both.lungs(), both.obx()
        assert {each["status"] for each in lungs.values()} == {"corrected"}
        for key in ("valueQuantity", "component"):
            assert [each[key] for each in lungs.values()] == [each[key] for each in before.values()]
        assert not any("note" in each for each in lungs.values())
        assert {density: obx[density] for density in DENSITIES} == {
            density: ("C", values[density][1]) for density in DENSITIES
        }


def test_nothing_is_final_after_a_rejection_of_what_a_reader_had_corrected(answer: Answer, tmp_path: Path) -> None:
    with systems(tmp_path, answer, send="accepted") as both:
        both.after(ACCEPTED, UNUSABLE_AND_HIGH, REJECTED)
        assert {each["status"] for each in both.server.kept.values()} == {"entered-in-error"}
        assert {status for status, _ in both.obx().values()} == {"D"}


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_level_of_a_reader_is_withdrawn_if_the_model_has_none(verdict: str, answer: Answer) -> None:
    none = replace(answer, score={**answer.score, "level": {"severe": None, "pcr_positive": None}})
    high = replace(none, decision=decision(verdict="corrected", correction=Correction(levels={"severe": "high"})))
    later = replace(none, decision=decision(2, verdict=verdict))
    first, second = oru_message(high), oru_message(later, earlier=[high])
    assert held(first)["severe_level"] == ("F", "75540009^High^SCT")
    assert held(first, second)["severe_level"] == ("D", "")
    statuses = {entry["resource"]["status"] for entry in diagnostic_report(later, earlier=[high])["entry"]}
    assert statuses == {"corrected" if verdict == "accepted" else "entered-in-error"}


def test_densities_are_withdrawn_if_a_corrected_mask_leaves_none(answer: Answer, tmp_path: Path) -> None:
    shutil.copytree(answer.folder, tmp_path / "one")
    made = corrected_by_hand(replace(answer, folder=tmp_path / "one"))
    assert made.decision is not None and made.decision.correction.mask is not None
    regions = {
        side: {part: {**each, "ground_glass": None, "consolidation": None} for part, each in parts.items()}
        for side, parts in made.decision.correction.mask["regions"].items()
    }
    emptied = replace(made.decision, correction=Correction(mask={**made.decision.correction.mask, "regions": regions}))
    obx = held(oru_message(answer), oru_message(replace(made, decision=emptied), earlier=[answer]))
    assert {obx[density] for density in DENSITIES} == {("D", "")}
