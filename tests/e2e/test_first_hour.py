"""First setup at a hospital: a real PACS with 40 studies of mixed quality and an HL7 export become a cohort."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.phantom.generate import make_hospitals
from tests.e2e.conftest import run_command
from tests.e2e.orthanc import Orthanc, require_orthanc
from tests.e2e.test_privacy import use_pacs

pytestmark = pytest.mark.e2e

CLEAN = 24


def answer(*arguments: str | Path) -> Any:
    done = run_command("node", *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def expected(truth: Any) -> Counter[str]:
    """Return the expected number of findings per code, from the planted defects.

    Two defects look different through a PACS. It refuses a truncated image, so a slice is missing. An image of another
    modality is not pulled.
    """
    codes = Counter(defect["code"] for defect in truth["defects"])
    codes["E_SLICE_GAP"] += codes.pop("E_TRUNCATED")
    assert codes.pop("E_MODALITY") == 1
    return codes


def is_usable(patient: Any) -> bool:
    """Return whether the planted defect leaves the scan and the PCR label of the patient unchanged."""
    harmless = {None, "W_SEVERAL_SERIES", "E_MODALITY"}
    row_left_out = {"W_PCR_UNMAPPED", "E_PCR_DATE"}
    return patient["defect"] in harmless or (patient["defect"] in row_left_out and patient["pcr_positive"])


def test_cohort_from_pacs_and_hl7_export_has_the_planted_numbers(tmp_path: Path) -> None:
    require_orthanc()
    (hospital,) = make_hospitals(tmp_path / "hospitals", patients=[CLEAN], seed=3, laboratory="hl7", anatomy="template")
    truth = json.loads((hospital / "truth.json").read_text())
    orthanc = Orthanc(tmp_path / "orthanc")
    try:
        orthanc.start()
        refused = orthanc.upload((hospital / "ct").rglob("*.dcm"))
        assert refused == 1  # the truncated image
        studies = orthanc.rest("GET", "/statistics")["CountStudies"]
        assert studies >= 40
        site = tmp_path / "site"
        assert run_command("node", "init", site, "--from", hospital).returncode == 0
        use_pacs(site, orthanc)
        with orthanc.inside():
            before = {line["name"]: line["status"] for line in answer("check", site)["lines"]}
            report = answer("ingest", site)
            again = answer("ingest", site)
    finally:
        orthanc.close()

    assert before["PACS"] == before["laboratory"] == before["outcomes"] == "ok"
    assert before["fetched"] == "warn"
    assert report["pulled"]["failed"] == 0
    assert report["pulled"]["other_modalities"] == {"MR": 1}
    found = Counter({finding["code"]: finding["count"] for finding in report["findings"]})
    assert found == expected(truth)

    accepted = [patient for patient in truth["patients"] if is_usable(patient)]
    positive = [patient for patient in accepted if patient["pcr_positive"]]
    assert report["patients"] == len(accepted) > CLEAN
    assert report["pcr_positive"] == len(positive)
    assert report["severe_among_positive"] == sum(patient["severe"] for patient in positive)
    assert again["pulled"]["fetched_now"] == again["examined_now"] == 0
    assert again["findings"] == report["findings"]
