"""Results and outcomes from a FHIR server of other authors, by search and by export. All data are synthetic."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.feeds.fhir_fetch import fetch
from pipeline.records.outcomes import Outcome, read_outcomes
from pipeline.site.folder import Site, init_site
from tests.helpers.fhir_peer import PAGE, FhirPeer, needs_peer, running_peer
from tests.pipeline.feeds.test_fhir_fetch import SITE, Waiting, expected, read, results
from tests.pipeline.records.laboratory.test_fhir import DETECTED, Json, concept, observation, patient
from tests.pipeline.records.test_fhir_histories import DISCHARGE, OPS, condition, encounter, procedure

pytestmark = [needs_peer, pytest.mark.slow]

OUTCOMES = """[outcomes]
format = "fhir"
from_date = 2020-03-01
[outcomes.codes]
intubated = ["ops|8-701", "icd-10|Z99.1"]
icu = ["ops|8-980*"]
died = ["discharge|exp"]
"""
COUNT = PAGE + 5  # patients


@pytest.fixture
def peer() -> Iterator[FhirPeer]:
    with running_peer() as found:
        yield found


def stay(number: int, **elements: Any) -> Json:
    code = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
    return encounter(str(number), **{"class": code, **elements})


def hospital() -> list[Json]:
    """Patients with results and one stay each; events of four kinds of resources; a patient without a result."""
    died = {"dischargeDisposition": concept(DISCHARGE, "exp")}
    special = {
        3: stay(3, serviceType=concept(OPS, "8-980.0")),
        4: stay(4, hospitalization=died, end="2020-04-28"),
    }
    found = results(COUNT)
    next(each for each in found if each["id"] == "p1")["deceasedDateTime"] = "2020-04-20T23:30:00Z"
    found += [special.get(number, stay(number)) for number in range(COUNT)]
    return [*found, procedure("0"), condition("2"), patient("other"), stay("other"), procedure("other")]  # type: ignore[arg-type]


def make_site(folder: Path, url: str, more: str) -> Site:
    text = SITE.format(url=url, more=more).replace('[outcomes]\nfile = "outcomes.csv"\n', OUTCOMES)
    return init_site(folder / "site", text)


def outcomes(site: Site) -> dict[str, Outcome]:
    assert site.settings.outcomes is not None
    found, findings = read_outcomes(site.settings.outcomes, time_zone="Europe/Paris", today=date(2020, 6, 1))
    assert findings == []
    return found


@pytest.mark.parametrize("method", ["search", "export"])
def test_results_and_outcomes_are_fetched_from_it(method: str, peer: FhirPeer, tmp_path: Path) -> None:
    for each in hospital():
        peer.put(each)
    site = make_site(tmp_path, peer.url, f'method = "{method}"')
    fetch(site, sleep=Waiting())
    end = date(2020, 5, 10)
    assert read(site) == expected(COUNT)
    assert outcomes(site) == {
        **{str(number): Outcome(str(number), None, None, end) for number in range(COUNT)},
        "0": Outcome("0", date(2020, 4, 2), None, end),
        "1": Outcome("1", None, date(2020, 4, 21), end),  # 23:30 UTC is the next day in Paris
        "2": Outcome("2", date(2020, 4, 3), None, end),
        "3": Outcome("3", None, None, end, icu=date(2020, 4, 1)),
        "4": Outcome("4", None, date(2020, 4, 28), date(2020, 4, 28)),
    }
    assert "pother" not in site.fhir_store.read_bytes().decode("latin-1")
    assert not [line for line in peer.log if "GET" in line and not line.split()[2].startswith("2")]
    if method == "search":
        assert len(peer.asked("GET /r4/Observation?")) == len(peer.asked("GET /r4/Encounter?")) == 2


def test_later_fetch_takes_only_what_has_changed(peer: FhirPeer, tmp_path: Path) -> None:
    for each in results(3):
        peer.put({**each, "meta": {"lastUpdated": "2020-04-21T00:00:00.000Z"}})
    site = make_site(tmp_path, peer.url, "")
    fetch(site, sleep=Waiting())
    assert read(site) == expected(3)
    for each in results(3):  # as if they had been there for long: this server sets no such time itself
        peer.put({**each, "meta": {"lastUpdated": "2020-04-21T00:00:00.000Z"}})
    peer.put(observation("0", DETECTED, status="corrected", meta={"lastUpdated": datetime.now(UTC).isoformat()}))
    peer.log.clear()
    fetch(site, sleep=Waiting())
    assert read(site) == {**expected(3), "0": True}
    assert "_lastUpdated=ge20" in peer.asked("GET /r4/Observation?")[0]
