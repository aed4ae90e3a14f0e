"""Outcomes fetched from a FHIR server, together with the laboratory's results. All data are synthetic."""

from datetime import date
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.feeds.fhir_fetch import fetch
from pipeline.records.outcomes import Outcome, read_outcomes
from pipeline.site.folder import Site, init_site
from tests.pipeline.feeds.fhir_server import Answer, FhirServer, serving
from tests.pipeline.feeds.test_fhir_fetch import SITE, Waiting, expected, read, results
from tests.pipeline.records.laboratory.test_fhir import Json, patient
from tests.pipeline.records.test_fhir_histories import encounter, procedure

pytestmark = pytest.mark.slow

OUTCOMES = """[outcomes]
format = "fhir"
from_date = 2020-03-01
[outcomes.codes]
intubated = ["ops|8-701"]
"""


def make_site(folder: Path, url: str, more: str = "") -> Site:
    text = SITE.format(url=url, more=more).replace('[outcomes]\nfile = "outcomes.csv"\n', OUTCOMES)
    return init_site(folder / "site", text)


def content(count: int) -> list[Json]:
    """Patients with results; the first was intubated, the second died. A patient without result was intubated, too."""
    found = results(count)
    for each in found:
        if each["id"] == "p1":
            each["deceasedDateTime"] = "2020-04-20"
    found += [encounter(str(number)) for number in range(count)]
    return [*found, procedure("0"), patient("other"), encounter("other"), procedure("other")]


def outcomes(site: Site) -> dict[str, Outcome]:
    assert site.settings.outcomes is not None
    found, findings = read_outcomes(site.settings.outcomes, time_zone="Europe/Paris", today=date(2020, 6, 1))
    assert findings == []
    return found


COURSES = {
    "0": Outcome("0", date(2020, 4, 2), None, date(2020, 5, 10)),
    "1": Outcome("1", None, date(2020, 4, 20), date(2020, 5, 10)),
    "2": Outcome("2", None, None, date(2020, 5, 10)),
}


@pytest.mark.parametrize("method", ["search", "export"])
def test_course_of_the_patients_with_results_is_fetched(tmp_path: Path, method: str) -> None:
    with serving(FhirServer(content(3))) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"\npage_size = 2')
        for _ in range(2):
            fetch(site, sleep=Waiting())
            assert (read(site), outcomes(site)) == (expected(3), COURSES)
        assert any(
            "Encounter?patient=Patient%2Fp0%2CPatient%2Fp1%2CPatient%2Fp2&date=ge2020-03-01" in path
            for path in server.asked
        ) == (method == "search")
        server.resources = [each for each in server.resources if each["resourceType"] != "Procedure"]
        path = site.folder / "site.toml"
        path.write_text(path.read_text().replace("retries = 1", "retries = 1\nrefresh_days = 1e-9"))
        fetch(Site.open(site.folder), sleep=Waiting())
        assert outcomes(site)["0"].intubated is None
    stored = site.fhir_store.read_bytes().decode("latin-1")
    assert "pother" not in stored and "Encounter-other" not in stored


@pytest.mark.parametrize("method", ["search", "export"])
def test_event_without_a_valid_id_leaves_its_patient_without_outcome(tmp_path: Path, method: str) -> None:
    unnamed = [{**procedure(patient), "id": "a/b"} for patient in ("2", "other")]
    with serving(FhirServer([*content(3), *unnamed])) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"')
        fetch(site, sleep=Waiting())
    assert site.settings.outcomes is not None
    found, findings = read_outcomes(site.settings.outcomes, time_zone="Europe/Paris", today=date(2020, 6, 1))
    assert found == {key: COURSES[key] for key in "01"}
    assert [(each.reason.code, each.patient_id) for each in findings] == [("E_FHIR", "2")]


def test_event_that_was_corrected_is_no_longer_reported(tmp_path: Path) -> None:
    with serving(FhirServer([*content(3), {**procedure("2"), "id": "a/b"}])) as server:
        site = make_site(tmp_path, server.url)
        fetch(site, sleep=Waiting())
        server.resources = content(3)
        fetch(site, sleep=Waiting())
        assert outcomes(site) == COURSES


def test_death_of_a_patient_without_a_valid_id_leaves_no_outcome(tmp_path: Path) -> None:
    dead = {**patient("2"), "id": "p 2", "deceasedDateTime": "2020-04-21"}
    with serving(FhirServer([*content(3), dead])) as server:
        site = make_site(tmp_path, server.url, 'method = "export"')
        fetch(site, sleep=Waiting())
    assert site.settings.outcomes is not None
    found, findings = read_outcomes(site.settings.outcomes, time_zone="Europe/Paris", today=date(2020, 6, 1))
    assert found == {key: COURSES[key] for key in "01"}
    assert [(each.reason.code, each.patient_id) for each in findings] == [("E_FHIR", "2")]


def test_interrupted_fetch_of_courses_does_not_search_for_results_again(tmp_path: Path) -> None:
    with serving(FhirServer(content(3))) as server:
        site = make_site(tmp_path, server.url)
        server.special["/r4/Procedure"] = lambda *_: Answer({}, 503)
        with pytest.raises(Refusal, match="E_FHIR_SILENT"):
            fetch(site, sleep=Waiting())
        server.special.clear()
        server.asked.clear()
        fetch(site, sleep=Waiting())
        assert [path.partition("?")[0] for path in server.asked] == ["/r4/Procedure", "/r4/Condition"]
        assert outcomes(site) == COURSES


def test_search_for_outcomes_needs_fetched_results(tmp_path: Path) -> None:
    text = SITE.format(url="http://127.0.0.1:1/r4", more="").replace('[outcomes]\nfile = "outcomes.csv"\n', OUTCOMES)
    text = text.replace('format = "fhir"\ntests', 'format = "fhir"\nfile = "results.json"\ntests')
    with pytest.raises(Refusal, match="E_SETTINGS"):
        init_site(tmp_path / "site", text)
    init_site(tmp_path / "other", text.replace("retries = 1", 'retries = 1\nmethod = "export"'))
