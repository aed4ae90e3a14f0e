"""Tests of what is sent as FHIR and as HL7 v2: content, status, attacks in headers, and the delivery over a network."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hl7
import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.observation import Observation

from models.refusal import Refusal
from pipeline.clinic.records import Answer, Correction, Patient
from pipeline.clinic.results.fhir_report import diagnostic_report
from pipeline.clinic.results.oru_message import control_id_of, oru_message
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import Clinic, ClinicSettings
from pipeline.clinic.store import new_id
from pipeline.feeds.acknowledgement import find_fault, read_header
from pipeline.feeds.mllp_sender import send_message
from pipeline.scoring.score import Score
from tests.helpers.scored_answers import PCR_POSITIVE, SEVERE, answer_to, series_of
from tests.pipeline.clinic.results.receivers import FhirServer, Receiver
from tests.pipeline.clinic.results.test_verified import corrected_by_hand, decision

PATIENT = Patient("SYNTHETIC-1", "ward", "CANARY^SYNTHETIC", "F", 63.0)


@pytest.fixture(scope="module")
def answer(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / new_id(), patient=PATIENT)


def test_time_of_the_scan_is_sent_with_its_offset_if_it_has_one(answer: Answer) -> None:
    local = replace(answer, acquired_at=datetime(2021, 3, 5, 1, 30))
    zoned = replace(local, acquired_at=datetime(2021, 3, 5, 1, 30, tzinfo=UTC))
    for made, fhir, hl7_time in (
        (local, "2021-03-05", "20210305013000"),
        (zoned, "2021-03-05T01:30:00+00:00", "20210305013000+0000"),
    ):
        assert {each["effectiveDateTime"] for each in resources(made).values()} == {fhir}
        assert str(fields(oru_message(made)).segment("OBR")[7]) == hl7_time


def test_server_that_sets_ids_finds_the_resources_by_their_identifiers(answer: Answer) -> None:
    server = FhirServer()
    for decided in (answer, answer, replace(answer, decision=decision())):
        bundle = diagnostic_report(decided, ids="server")
        assert not any("id" in entry["resource"] for entry in bundle["entry"])
        places = {entry["fullUrl"] for entry in bundle["entry"]}
        report = bundle["entry"][-1]["resource"]
        assert {each["reference"] for each in report["result"]} < places
        server.take(bundle)
    server.server_close()
    assert len(server.received) == 3
    assert sorted(kind for kind, _ in server.kept) == ["DiagnosticReport", *["Observation"] * 5]
    assert {each["status"] for each in server.kept.values()} == {"final"}


def resources(answer: Answer, **how: Any) -> dict[str, dict[str, Any]]:
    """The resources of a transaction, by type and id without the answer's."""
    bundle = diagnostic_report(answer, **how)
    Bundle.model_validate(bundle)
    for entry in bundle["entry"]:
        assert entry["request"] == {
            "method": "PUT",
            "url": f"{entry['resource']['resourceType']}/{entry['resource']['id']}",
        }
    return {
        entry["resource"]["id"].removeprefix(answer.id).removeprefix("-"): entry["resource"]
        for entry in bundle["entry"]
    }


def fields(message: bytes) -> Any:
    return hl7.parse(message.decode())


def results(message: bytes) -> dict[str, Any]:
    """The values of the results by the first component of their codes; remarks as a list."""
    found: dict[str, Any] = {}
    for line in message.decode().split("\r"):
        if line.startswith("OBX"):
            obx = line.split("|")
            code = obx[3].split("^")[0]
            found[code] = [*found.get(code, []), obx[5]] if code == "comment" else obx[5]
    return found


# --- FHIR ---


def test_report_refers_to_the_observations_of_the_probabilities_and_the_lungs(answer: Answer) -> None:
    told = resources(answer)
    assert told.keys() == {"", "severe", "pcr-positive", "lungs-both", "lungs-right", "lungs-left"}
    report = told[""]
    assert {each["reference"] for each in report["result"]} == {
        f"Observation/{each['id']}" for each in told.values() if each is not report
    }
    assert told["severe"]["valueQuantity"]["value"] == round(100 * SEVERE, 2)
    assert told["severe"]["interpretation"] == [{"text": "intermediate, by the release's operating points"}]
    assert told["pcr-positive"]["valueQuantity"]["value"] == round(100 * PCR_POSITIVE, 2)
    assert report["subject"]["identifier"]["value"] == PATIENT.id
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{answer.study_uid}"
    assert "not verified by a person" in report["conclusion"] and "Research use only" in report["conclusion"]


@pytest.mark.parametrize(
    ("verdict", "is_later", "fhir", "hl7_status"),
    [
        (None, False, "preliminary", "P"),
        ("accepted", False, "final", "F"),
        ("accepted", True, "corrected", "C"),
        ("rejected", False, "entered-in-error", "D"),
        ("rejected", True, "entered-in-error", "D"),
    ],
)
def test_status_says_whether_a_person_accepted(
    verdict: Any, is_later: bool, fhir: str, hl7_status: str, answer: Answer
) -> None:
    decided = replace(answer, decision=verdict and decision(verdict=verdict))
    earlier = [answer, *([replace(answer, decision=decision(2))] if is_later else [])]
    assert {each["status"] for each in resources(decided, earlier=earlier).values()} == {fhir}
    lines = oru_message(decided, earlier=earlier).decode().split("\r")
    assert {line.split("|")[11] for line in lines if line.startswith("OBX")} == {hl7_status}
    (order,) = (line.split("|") for line in lines if line.startswith("OBR"))
    assert order[25] == ("C" if hl7_status == "D" else hl7_status)


def test_figures_of_a_mask_corrected_by_hand_are_sent_and_said_to_be(answer: Answer, tmp_path: Path) -> None:
    shutil.copytree(answer.folder, tmp_path / "one")
    corrected = corrected_by_hand(replace(answer, folder=tmp_path / "one"))
    told, before = resources(corrected), resources(answer)
    assert told["lungs-right"]["valueQuantity"]["value"] == 0
    assert told["lungs-left"]["valueQuantity"] == before["lungs-left"]["valueQuantity"]
    said = "Computed from a mask of the lungs that the reader corrected by hand."
    assert told["lungs-both"]["note"] == [{"text": said}] and "note" not in before["lungs-both"]
    by_hand = "The mask of the lungs was corrected by hand"
    assert by_hand in told[""]["conclusion"]
    sent, model = results(oru_message(corrected)), results(oru_message(answer))
    assert any(by_hand in remark for remark in sent["comment"])
    left = answer.score["lungs"]["regions"]["left"]["whole"]["ground_glass"]
    assert sent["ground_glass"] == f"{100 * left:.2f}" != model["ground_glass"]


def test_corrections_are_sent_as_the_readers(answer: Answer) -> None:
    correction = Correction(levels={"severe": "high"}, lungs_usable=False)
    decided = replace(answer, decision=decision(verdict="corrected", reason="lungs", correction=correction))
    told = resources(decided)
    assert told.keys() == {"", "severe", "pcr-positive"}
    assert told["severe"]["interpretation"] == [{"text": "high, set by the reader"}]
    assert told[""]["resultsInterpreter"] == [{"type": "Practitioner", "display": "Müller, Anna Dr."}]
    assert results(oru_message(decided))["severe_level"] == "75540009^High^SCT"
    assert "ground_glass" not in results(oru_message(decided))


@pytest.mark.parametrize("make", [diagnostic_report, oru_message])
def test_result_of_a_model_of_phantoms_is_never_sent_for_a_patient(make: Any, answer: Answer) -> None:
    score = {**answer.score, "input": {**answer.score["input"], "is_phantom": False}}
    with pytest.raises(Refusal, match="E_NOT_FOR_PATIENTS"):
        make(replace(answer, score=score, decision=decision()))


# --- HL7 v2 ---


def test_message_has_the_fields_of_a_result(answer: Answer) -> None:
    message = fields(oru_message(replace(answer, accession="ACC-7", decision=decision())))
    header, patient, order = (message.segment(name) for name in ("MSH", "PID", "OBR"))
    assert (str(header(9)), str(header(12))) == ("ORU^R01^ORU_R01", "2.5.1")
    assert (str(patient(3)), str(patient(5)), str(patient(8))) == ("SYNTHETIC-1^^^ward", "CANARY^SYNTHETIC", "F")
    assert (str(order(4)), str(order(18)), str(order(25))) == ("24627-2^CT Chest^LN", "ACC-7", "F")
    assert str(order(32)) == "&Müller&Anna&&&Dr."
    told = results(oru_message(answer))
    assert told["severe"] == f"{100 * SEVERE:.2f}" and told["severe_level"] == "11896004^Intermediate^SCT"
    assert float(told["ground_glass"]) == round(
        100 * answer.score["lungs"]["regions"]["both"]["whole"]["ground_glass"], 2
    )
    assert "Created by software; not verified by a person." in told["comment"]


def test_our_own_listener_would_accept_the_message(answer: Answer) -> None:
    message = oru_message(answer)
    header = read_header(message)
    assert find_fault(header, message, "utf-8") is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "evil",
    ["A\rOBX|9|NM|severe||0.1", "A|B", "A^B~C\\D&E", "A\nMSH|^~\\&|X", "\u2028OBX|1", "\x0b\x1c\rMSH|"],
    ids=ascii,
)
def test_header_texts_cannot_add_segments_or_fields(evil: str, answer: Answer) -> None:
    plain = oru_message(answer)
    patient = replace(PATIENT, id=evil, name=f"{evil}^{evil}", issuer=evil)
    attacked = oru_message(replace(answer, patient=patient, accession=evil))
    assert attacked.count(b"\r") == plain.count(b"\r")
    assert not any(control in attacked for control in (b"\x0b", b"\x1c", b"\n"))
    (pid,) = (line.split("|") for line in attacked.decode().split("\r") if line.startswith("PID"))
    assert len(pid) == 9 and pid[8] == "F"
    assert pid[3].count("^") == 3


def test_control_id_is_the_same_until_the_next_decision(answer: Answer) -> None:
    decided = replace(answer, decision=decision())
    assert control_id_of(answer) == control_id_of(answer) != control_id_of(decided)
    assert str(fields(oru_message(decided)).segment("MSH")(10)) == control_id_of(decided)


def test_each_result_has_an_identity_of_its_own(answer: Answer) -> None:
    """A receiver that keeps results by OBX-3 and OBX-4 keeps all of them, and a decision replaces its own remark."""
    sent = [oru_message(each) for each in (answer, replace(answer, decision=decision()))]
    kept: dict[tuple[str, str], str] = {}
    for message in sent:
        lines = [line.split("|") for line in message.decode().split("\r") if line.startswith("OBX")]
        kept |= {(obx[3], obx[4]): obx[5] for obx in lines}
        assert len(kept) == len(lines)
        assert [text for (code, _), text in kept.items() if code.startswith("comment^")] == results(message)["comment"]
    numbers = [number for code, number in kept if code.startswith("comment^")]
    assert len(numbers) > 1 and numbers == [str(number) for number in range(1, len(numbers) + 1)]


@pytest.mark.parametrize(
    ("probability", "comparator", "limit"),
    [(0.0, "<", 0.1), (0.00004, "<", 0.1), (0.00099, "<", 0.1), (0.99997, ">", 99.9), (1.0, ">", 99.9)],
)
def test_no_probability_is_sent_as_0_or_100_percent(
    probability: float, comparator: str, limit: float, answer: Answer
) -> None:
    score = {**answer.score, "probability": {"severe": probability}, "interval": {"severe": [probability] * 2}}
    extreme = replace(answer, score=score)
    severe = resources(extreme)["severe"]
    for each in (severe, *severe["component"]):
        assert (each["valueQuantity"]["comparator"], each["valueQuantity"]["value"]) == (comparator, limit)
    Observation.model_validate(severe)
    (obx,) = (line.split("|") for line in oru_message(extreme).decode().split("\r") if "|severe^" in line)
    assert (obx[2], obx[5], obx[6]) == ("SN", f"{comparator}^{limit}", "%^Percent^UCUM")


@pytest.mark.parametrize("probability", [0.001, 0.999])
def test_probability_at_the_limit_is_a_number(probability: float, answer: Answer) -> None:
    ordinary = replace(answer, score={**answer.score, "probability": {"severe": probability}})
    quantity = resources(ordinary)["severe"]["valueQuantity"]
    assert "comparator" not in quantity and quantity["value"] == round(100 * probability, 2)
    assert results(oru_message(ordinary))["severe"] == f"{100 * probability:.2f}"


def test_lungs_without_dense_parts_are_sent_as_0_percent(answer: Answer) -> None:
    """A measured share may be 0, other than a probability."""
    lungs = answer.score["lungs"]
    both = {**lungs["regions"]["both"]}
    both["whole"] = {**both["whole"], "ground_glass": 0.0, "consolidation": 0.0}
    healthy = replace(answer, score={**answer.score, "lungs": {**lungs, "regions": {**lungs["regions"], "both": both}}})
    assert results(oru_message(healthy))["ground_glass"] == "0.00"
    shares = [each["valueQuantity"] for each in resources(healthy)["lungs-both"]["component"]]
    assert [each["value"] for each in shares] == [0, 0] and not any("comparator" in each for each in shares)


# --- over a network ---


def sent_to(receiver: Receiver, message: bytes, control_id: str) -> str:
    with receiver.running() as port:
        try:
            send_message(message, control_id, "127.0.0.1", port, tls=None, timeout_seconds=60)
        except Refusal as refusal:
            return refusal.code
    return "accepted"


@pytest.mark.parametrize(
    ("code", "error", "outcome"),
    [
        ("AA", "", "accepted"),
        ("CA", "", "accepted"),
        ("AE", "", "E_HL7_REFUSED"),
        ("AE", "101", "E_HL7_REFUSED"),
        ("AE", "207", "E_HL7_BUSY"),
        ("CE", "206", "E_HL7_BUSY"),
        ("AR", "", "E_HL7_BUSY"),
        ("AR", "207", "E_HL7_BUSY"),
        ("AR", "200", "E_HL7_REFUSED"),
        ("CR", "203", "E_HL7_REFUSED"),
        ("ZZ", "", "E_HL7_SILENT"),
    ],
)
def test_acknowledgement_decides_the_outcome(code: str, error: str, outcome: str, answer: Answer) -> None:
    receiver = Receiver(code, error=error)
    assert sent_to(receiver, oru_message(answer), control_id_of(answer)) == outcome
    assert receiver.received == [oru_message(answer)]


@pytest.mark.parametrize(
    "reply",
    [b"", b"nonsense", b"\x0b\x1c\r", b"\x0bMSH|^~\\&\rMSA|AA|another\r\x1c\r", b"\x0bMSA|AA\r\x1c\r", b"x" * 100_000],
    ids=lambda reply: reply[:20].hex() or "none",
)
def test_broken_or_foreign_acknowledgement_does_not_count(reply: bytes, answer: Answer) -> None:
    assert sent_to(Receiver(answer=reply), oru_message(answer), control_id_of(answer)) == "E_HL7_SILENT"


def stored(clinic: Clinic, answer: Answer) -> Answer:
    """Put the answer into the clinic's store, queued as the worker does."""
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test")
        job = store.jobs.take()
        assert job is not None
        made = replace(answer, job_id=job.id)
        store.answers.add(job, made, deliver=Outbox(clinic).targets_of_new(made))
        return store.answers.get(made.id)


def states(clinic: Clinic, answer: Answer) -> list[tuple[str, str, str | None]]:
    """Attempt everything that waits, in order."""
    with clinic.store() as store:
        waiting = store.deliveries.in_state("waiting")
    for each in waiting:
        Outbox(clinic).attempt(each)
    with clinic.store() as store:
        return [(each.target, each.state, each.code) for each in store.deliveries.of(answer.id)]


@pytest.mark.parametrize("send", ["accepted", "always"])
def test_outbox_tells_both_systems_what_holds(send: str, answer: Answer, tmp_path: Path) -> None:
    receiver, server = Receiver(), FhirServer()
    with receiver.running() as port, server.running() as url:
        hl7_table, fhir_table = {"host": "127.0.0.1", "port": port, "send": send}, {"url": url, "send": send}
        results_table = {"fhir": fhir_table, "hl7": hl7_table}
        clinic = Clinic(tmp_path, ClinicSettings.model_validate({"results": results_table}))
        seen = stored(clinic, answer)
        before = [("fhir", "sent", None), ("hl7", "sent", None)] if send == "always" else []
        assert states(clinic, seen) == before
        with clinic.store() as store:
            for verdict, reason in (("accepted", None), ("rejected", "other")):
                now = store.answers.get(seen.id)
                proposal = Proposal(verdict, now.revision, reason)  # type: ignore[arg-type]
                targets = Outbox(clinic).targets(now, verdict)  # type: ignore[arg-type]
                decide(store, seen.id, proposal, by="reader", person="Leser^Anna", targets=targets)
                assert {state for _, state, _ in states(clinic, seen)} == {"sent"}
    sent = [each["entry"][0]["resource"]["status"] for each in server.received]
    last = ["final", "entered-in-error"]
    assert sent == (["preliminary", *last] if send == "always" else last)
    assert [line.split(b"|")[25] for each in receiver.received for line in each.split(b"\r") if line[:3] == b"OBR"] == (
        [b"P", b"F", b"C"] if send == "always" else [b"F", b"C"]
    )


def test_silent_systems_are_tried_again_and_refusals_are_final(answer: Answer, tmp_path: Path) -> None:
    server = FhirServer()
    with server.running() as url, Receiver("AE").running() as port:
        table = {"fhir": {"url": url, "send": "always"}, "hl7": {"host": "127.0.0.1", "port": port, "send": "always"}}
        clinic = Clinic(tmp_path, ClinicSettings.model_validate({"results": table}))
        server.status = 503
        made = stored(clinic, answer)
        assert states(clinic, made) == [("fhir", "waiting", "E_FHIR_SILENT"), ("hl7", "failed", "E_HL7_REFUSED")]
        server.status = 200
        for body in (b"<html>a proxy</html>", b"{}", b'{"resourceType": "Bundle", "type": "transaction-response"}'):
            server.body = body
            assert states(clinic, made)[0] == ("fhir", "waiting", "E_FHIR_ANSWER")
        server.body, server.cut = b"", True
        assert states(clinic, made)[0] == ("fhir", "waiting", "E_FHIR_SILENT")
        server.status, server.cut = 422, False
        assert states(clinic, made)[0] == ("fhir", "failed", "E_FHIR_REFUSED")


def test_answer_without_a_patient_is_not_sent(answer: Answer, tmp_path: Path) -> None:
    table = {"fhir": {"url": "http://127.0.0.1:1/fhir", "send": "always"}}
    clinic = Clinic(tmp_path, ClinicSettings.model_validate({"results": table}))
    assert Outbox(clinic).targets_of_new(replace(answer, patient=None)) == ()
    assert Outbox(clinic).targets(replace(answer, patient=None), "accepted") == ()
    assert Outbox(clinic).targets_of_new(answer) == ("fhir",)


@pytest.mark.parametrize(
    "table",
    [
        {"hl7": {"host": "192.0.2.1"}},
        {"hl7": {"host": "127.0.0.1", "certificate": "c.pem"}},
        {"fhir": {"url": "http://192.0.2.1/fhir"}},
        {"fhir": {"url": "https://x/fhir", "send": "off"}},
    ],
    ids=str,
)
def test_settings_that_would_send_names_unencrypted_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="results"):
        ClinicSettings.model_validate({"results": table})
