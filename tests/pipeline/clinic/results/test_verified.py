"""Tests of the results of a decision: a verified report that replaces the unverified one, or a note that rejects it."""

import base64
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.sr import srread
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code
from pydicom.uid import KeyObjectSelectionDocumentStorage

from models.refusal import Refusal
from pipeline.clinic.corrected_mask import folder_of_mask, read_corrected
from pipeline.clinic.pictures import LABELS, read_volume
from pipeline.clinic.records import Answer, Correction, Decision
from pipeline.clinic.results import sr_codes
from pipeline.clinic.results.verified import NOTE, rejection_files, verified_files, withdrawal_files
from pipeline.clinic.results.write import PICTURE, REPORT, SEGMENTATION, write_results
from pipeline.clinic.settings import Clinic, ClinicSettings
from pipeline.preprocessing.lung_labels import RIGHT, sides_of
from pipeline.scoring.score import Score
from tests.helpers.scored_answers import answer_to, series_of
from tests.pipeline.clinic.results.test_structured_report import figures, groups_of, texts

READER = "Müller^Anna^^Dr."
DECIDED_AT = datetime(2026, 5, 4, 9, 8, 7, tzinfo=UTC)
THIRD = {"ground_glass": 0.5, "consolidation": 0.25}


def decision(number: int = 1, **values: Any) -> Decision:
    made = Decision(
        id=str(number) * 32,
        answer_id="one",
        at=DECIDED_AT,
        by="reader",
        person=READER,
        verdict="accepted",
        reason=None,
        comment="",
        correction=Correction(),
        revision="0" * 32,
        before={},
    )
    return replace(made, **values)


def corrected_by_hand(answer: Answer) -> Answer:
    """Erase the right lung, and return the answer with the decision. Writes the mask to the answer's folder."""
    before = read_volume(answer.folder / LABELS)[0].transpose(2, 1, 0)
    change = np.where(sides_of(before) == RIGHT, before & 15, 0).astype(np.uint8)
    packed = base64.b64encode(zlib.compress(change.tobytes())).decode()
    mask = read_corrected(answer, before.shape, packed)
    made = decision(verdict="corrected", reason="lungs", correction=Correction(mask=mask.summary()))
    mask.keep(folder_of_mask(answer, made.id))
    return replace(answer, decision=made)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path, ClinicSettings.model_validate({"results": {"organization": "Synthetic Hospital"}}))


@pytest.fixture(scope="module")
def unverified(scan: Path, score: Score, tmp_path_factory: pytest.TempPathFactory) -> Answer:
    made = answer_to(score, series_of(scan), tmp_path_factory.mktemp("answers") / "one")
    assert write_results(made, made.folder) is None
    return made


@pytest.fixture
def answer(unverified: Answer, tmp_path: Path) -> Answer:
    """An answer with its unverified results."""
    shutil.copytree(unverified.folder, tmp_path / "one")
    return replace(unverified, folder=tmp_path / "one")


def test_verified_report_names_the_observer_and_the_report_that_it_replaces(clinic: Clinic, answer: Answer) -> None:
    files = verified_files(clinic, replace(answer, decision=decision()), [decision()])
    assert [path.name for path in files] == [REPORT, PICTURE]
    before, report = dcmread(answer.folder / REPORT), srread(files[0])
    assert (before.VerificationFlag, report.VerificationFlag) == ("UNVERIFIED", "VERIFIED")
    assert (before.PreliminaryFlag, report.PreliminaryFlag) == ("PRELIMINARY", "FINAL")
    assert "VerifyingObserverSequence" not in before
    (observer,) = report.VerifyingObserverSequence
    assert (str(observer.VerifyingObserverName), observer.VerifyingOrganization) == (READER, "Synthetic Hospital")
    assert observer.VerificationDateTime == DECIDED_AT.astimezone().strftime("%Y%m%d%H%M%S")
    (study,) = report.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (named,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (before.StudyInstanceUID, before.SeriesInstanceUID)
    assert named.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert report.SOPInstanceUID != before.SOPInstanceUID
    assert report.SeriesInstanceUID != before.SeriesInstanceUID
    assert "UNVERIFIED" in before.SeriesDescription
    for path in files:
        assert "verified" in dcmread(path).SeriesDescription
    assert {each.observer_type.meaning for each in report.content.get_observer_contexts()} == {"Device", "Person"}
    assert "Accepted by Müller, Anna Dr. on 2026-05-04." in texts(report)
    assert not any("not verified by a person" in text for text in texts(report))
    assert figures(groups_of(report)["severe"]) == figures(groups_of(srread(answer.folder / REPORT))["severe"])


def test_second_decision_replaces_the_first_one(clinic: Clinic, answer: Answer) -> None:
    clinic.settings.results.picture = False
    first, second = decision(1), decision(2)
    (one,) = verified_files(clinic, replace(answer, decision=first), [first])
    (two,) = verified_files(clinic, replace(answer, decision=second), [first, second])
    named = dcmread(two).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == dcmread(one).SOPInstanceUID


def test_files_of_a_decision_are_written_once_and_always_the_same(
    clinic: Clinic, answer: Answer, tmp_path: Path
) -> None:
    shutil.copytree(answer.folder, tmp_path / "again" / "one")
    decided = replace(answer, decision=decision())
    made = {path: path.read_bytes() for path in verified_files(clinic, decided, [decision()])}
    assert {path: path.read_bytes() for path in verified_files(clinic, decided, [decision()])} == made
    again = replace(decided, folder=tmp_path / "again" / "one")
    assert [path.read_bytes() for path in verified_files(clinic, again, [decision()])] == list(made.values())
    assert {path.name for path in decided.folder.iterdir() if path.is_dir()} == {decision().id}


def test_corrections_are_reported_as_the_readers(clinic: Clinic, answer: Answer) -> None:
    clinic.settings.results.picture = False
    correction = Correction(levels={"severe": "high"}, shares={"right": {"lower": THIRD}})
    corrected = decision(verdict="corrected", reason="missed", comment="lower lobe", correction=correction)
    (path,) = verified_files(clinic, replace(answer, decision=corrected), [corrected])
    report = srread(path)
    groups = groups_of(report)
    assert groups["severe"].get_qualitative_evaluations(name=sr_codes.LEVEL) == []
    (level,) = groups["severe, level set by the reader"].get_qualitative_evaluations(name=sr_codes.LEVEL)
    assert level.value == Code("75540009", "SCT", "High")
    assert "The model said: intermediate." in texts(groups["severe, level set by the reader"][0])
    shares = groups["lungs, right"].get_measurements(name=sr_codes.SHARES["ground_glass"])
    assert [each.value for each in shares][-1] == 50
    assert "The reader corrected shares of this lung." in texts(groups["lungs, right"][0])
    assert len(groups["lungs, both"].get_measurements(name=sr_codes.SHARES["ground_glass"])) == 1  # only the whole
    said = "Corrected by Müller, Anna Dr. on 2026-05-04, because opacities were missed. Remark: lower lobe"
    assert said in texts(report)


def test_lungs_that_are_not_usable_are_not_reported(clinic: Clinic, answer: Answer) -> None:
    unusable = decision(verdict="corrected", reason="lungs", correction=Correction(lungs_usable=False))
    (path, _) = verified_files(clinic, replace(answer, decision=unusable), [unusable])
    assert groups_of(srread(path)).keys() == {"severe", "pcr_positive", "quality"}


def instances_in(note: Dataset) -> set[str]:
    """The instances that a note rejects."""
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    return {each.ReferencedSOPInstanceUID for of in study.ReferencedSeriesSequence for each in of.ReferencedSOPSequence}


def test_segmentations_that_the_pacs_has_are_rejected_if_the_lungs_are_not_usable(
    clinic: Clinic, answer: Answer
) -> None:
    """Nobody can delete them there, and other programs could go on using them. The report is replaced, as always."""
    clinic.settings.results.seg = True
    assert write_results(answer, answer.folder, seg=True) is None
    accepted = decision(1)
    accepted_files = verified_files(clinic, replace(answer, decision=accepted), [accepted])
    sent = [answer.folder / name for name in (REPORT, PICTURE, SEGMENTATION)] + accepted_files
    unusable = decision(2, verdict="corrected", reason="lungs", correction=Correction(lungs_usable=False))
    decided = replace(answer, decision=unusable)
    files = verified_files(clinic, decided, [accepted, unusable])
    assert [path.name for path in files] == [REPORT, PICTURE]
    (path,) = withdrawal_files(decided, sent)
    content = path.read_bytes()
    assert (withdrawal_files(decided, sent), path.read_bytes()) == ([path], content), "it is written once"
    assert verified_files(clinic, decided, [accepted, unusable]) == files
    note = dcmread(path)
    assert note.SOPClassUID == KeyObjectSelectionDocumentStorage
    segmentations = [path for path in sent if path.name == SEGMENTATION]
    assert len(segmentations) == 2
    assert instances_in(note) == {dcmread(path).SOPInstanceUID for path in segmentations}
    assert any("The outline of the lungs is not usable." in item.get("TextValue", "") for item in note.ContentSequence)


@pytest.mark.parametrize("usable", [True, False])
def test_no_segmentation_is_rejected_without_need(clinic: Clinic, answer: Answer, usable: bool) -> None:
    """A segmentation that is usable stays; without one there is nothing to reject."""
    sent = [answer.folder / REPORT, answer.folder / PICTURE]
    if usable:
        assert write_results(answer, answer.folder, seg=True) is None
        sent.append(answer.folder / SEGMENTATION)
    correction = Correction(levels={"severe": "high"}, lungs_usable=usable)
    corrected = decision(verdict="corrected", reason="lungs", correction=correction)
    verified_files(clinic, replace(answer, decision=corrected), [corrected])
    assert withdrawal_files(replace(answer, decision=corrected), sent) == []


def test_mask_corrected_by_hand_is_reported_with_its_figures(clinic: Clinic, answer: Answer) -> None:
    corrected = corrected_by_hand(answer)
    assert corrected.decision is not None
    clinic.settings.results.seg = True
    report_path, picture_path, _ = verified_files(clinic, corrected, [corrected.decision])
    report = srread(report_path)
    right = groups_of(report)["lungs, right"]
    assert [each.value for each in right.get_measurements(name=sr_codes.VOLUME)] == [0, 0, 0, 0]
    assert "Computed from a mask of the lungs that the reader corrected by hand." in texts(right[0])
    assert any("The mask of the lungs was corrected by hand" in text for text in texts(report))
    model = groups_of(srread(answer.folder / REPORT))["lungs, right"]
    assert (
        model.get_measurements(name=sr_codes.VOLUME)[0].value
        == answer.score["lungs"]["regions"]["right"]["whole"]["ml"]
    )
    drawn, before = (dcmread(path).pixel_array.shape for path in (picture_path, answer.folder / PICTURE))
    assert drawn != before  # the picture shows the one lung that is left


def test_rejection_names_what_was_sent(answer: Answer) -> None:
    rejected = decision(verdict="rejected", reason="image_quality")
    sent = [answer.folder / REPORT, answer.folder / PICTURE]
    (path,) = rejection_files(replace(answer, decision=rejected), sent)
    note = dcmread(path)
    assert (path.name, note.SOPClassUID, note.Modality) == (NOTE, KeyObjectSelectionDocumentStorage, "KO")
    (title,) = note.ConceptNameCodeSequence
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113001", "DCM")
    assert instances_in(note) == {dcmread(each).SOPInstanceUID for each in sent}
    assert note.PatientID == dcmread(sent[0]).PatientID


def test_answer_without_dicom_source_has_no_verified_results(clinic: Clinic, answer: Answer) -> None:
    (answer.folder / "source.dcm").unlink()
    with pytest.raises(Refusal, match="E_RESULT_NO_DICOM"):
        verified_files(clinic, replace(answer, decision=decision()), [decision()])


def test_damaged_earlier_report_is_an_error_with_a_code(clinic: Clinic, answer: Answer) -> None:
    (answer.folder / REPORT).write_bytes(b"DICM")
    with pytest.raises(Refusal, match="E_RESULT_WRITE"):
        verified_files(clinic, replace(answer, decision=decision()), [decision()])
    assert not (answer.folder / decision().id).exists()


def test_service_makes_the_files_without_torch() -> None:
    """The service's process has little memory, and would be slow for its users while it imports torch."""
    modules = "picture, rejection_note, segmentation, structured_report, verified, outbox, fhir_report, oru_message"
    program = f"from pipeline.clinic.results import {modules}\nimport sys\nassert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent (Debian package dicom3tools)")
@pytest.mark.parametrize("verdict", ["accepted", "corrected", "rejected", "not usable"])
def test_dciodvfy_finds_no_error(verdict: Any, clinic: Clinic, answer: Answer) -> None:
    if verdict == "not usable":
        assert write_results(answer, answer.folder, seg=True) is None
        made = decision(verdict="corrected", reason="lungs", correction=Correction(lungs_usable=False))
        decided = replace(answer, decision=made)
        files = [*verified_files(clinic, decided, [made]), *withdrawal_files(decided, [answer.folder / SEGMENTATION])]
        check_with_dciodvfy(files)
        return
    correction = Correction(levels={"severe": "high"}, shares={"left": {"upper": THIRD}})
    reason = None if verdict == "accepted" else "missed"
    made = decision(verdict=verdict, reason=reason, correction=correction if verdict == "corrected" else Correction())
    decided = replace(answer, decision=made)
    if made.is_valid:
        files = verified_files(clinic, decided, [made])
    else:
        files = rejection_files(decided, [answer.folder / REPORT])
    check_with_dciodvfy(files)


def check_with_dciodvfy(files: list[Path]) -> None:
    for path in files:
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        assert {"Comprehensive3DSR", "SCImage", "KeyObjectSelectionDocument"} & set(lines), lines
        assert [line for line in lines if line.startswith("Error")] == []
