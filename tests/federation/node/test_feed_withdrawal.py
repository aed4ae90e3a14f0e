"""One patient withdraws: nothing that feeds have sent remains at the site, and nothing comes back. Synthetic data."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest

from federation.ledger.chain import ledger_file, read_lines
from federation.node.withdrawal import withdraw
from models.refusal import Refusal
from pipeline.feeds.fhir_fetch import fetch
from pipeline.records.fhir_store import ResourceStore
from pipeline.records.laboratory import read_pcr
from pipeline.records.outcomes.omop_histories import write_lines
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn
from tests.canary.scanner import Planted, Scanner
from tests.pipeline.feeds.fhir_server import Answer, FhirServer, serving
from tests.pipeline.feeds.listener_rig import Rig, result, running
from tests.pipeline.feeds.test_fhir_courses import make_site as fhir_site
from tests.pipeline.feeds.test_fhir_fetch import Waiting, read
from tests.pipeline.records.laboratory.test_fhir import Json, observation, patient, specimen
from tests.pipeline.records.test_fhir_histories import encounter, procedure

pytestmark = pytest.mark.slow

GONE, NAME, OTHER = "4401728395566", "BERGQVIST", "7713064829013"
DAY = "2020-04-01T08:30:00+02:00"


def everything(folder: Path) -> bytes:
    """The names and contents of all files of a site."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return b"\n".join(str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes() for path in files)


def traces(site: Site) -> set[str]:
    """What is found of the patient in the site's folder, in any encoding."""
    planted = Planted("patient", (GONE, NAME, f"fhir-{GONE[::-1]}", site.pseudonym(GONE)))
    return {hit.disguise for hit in Scanner([planted]).scan(everything(site.folder), depth=1)}


def sent(control: str, patient_id: str = GONE) -> bytes:
    name = NAME if patient_id == GONE else "ANOTHER"
    return result(control, patient=patient_id).replace(b"SYNTHETIC^ONE", f"{name}^SYLVI".encode())


def of_both(control: str) -> bytes:
    """A message of two patients; the second one is withdrawn."""
    return sent(control, OTHER) + sent(control).partition(b"\r")[2]


# --- HL7 messages ------------------------------------------------------------------------------------------------


def test_messages_are_deleted_and_later_ones_acknowledged_and_not_kept(tmp_path: Path) -> None:
    with running(Rig.make(tmp_path)) as rig:
        for message in (sent("M1"), sent("M2", OTHER), of_both("M3")):
            rig.send(message)
        (rig.queue / "ab").mkdir(exist_ok=True)
        (rig.queue / "ab" / ".0123.tmp").write_bytes(sent("M9"))  # a listener was killed
        assert len(rig.stored) == 3 and traces(rig.site)
        done = withdraw(rig.site, [GONE])  # while the listener runs
        assert done.erased.messages == 2
        assert rig.stored == sorted([sent("M2", OTHER), of_both("M3").partition(f"PID|1||{GONE}".encode())[0]])
        assert not traces(rig.site)
        before = rig.log
        replies = [rig.send(message) for message in (sent("M1"), sent("M4"), of_both("M3"), of_both("M5"))]
        assert [reply.code for reply in replies if reply] == ["AA"] * 4
        assert len(rig.stored) == 3 and not traces(rig.site)
        other = rig.send(sent("M6", OTHER))
        assert other and replies[1]
        # Neither the acknowledgement nor the log tells which of two messages was kept.
        assert str(other.message[1]).replace("M6", "M4") == str(replies[1].message[1])
        lines = [line.split(" ", 2)[2] for line in rig.log[len(before) :].splitlines()]
        assert (
            lines == ["a message was received"] * 2 + ["a message was received again"] + ["a message was received"] * 2
        )
    assert {each.patient_id for each in rig.read()[0]} == {OTHER}


def test_message_of_a_withdrawn_patient_needs_space_as_any_other(tmp_path: Path) -> None:
    """Otherwise the sender could tell the withdrawn patients from the acknowledgements."""
    rig = Rig.make(tmp_path)
    path = rig.site.folder / "site.toml"
    path.write_text(path.read_text().replace("keep_free_gb = 0", "keep_free_gb = 1e9"))
    withdraw(rig.site, [GONE])
    with running(rig):
        assert [reply.code for reply in map(rig.send, (sent("M1"), sent("M2", OTHER))) if reply] == ["AE", "AE"]


# --- FHIR resources ----------------------------------------------------------------------------------------------


def resources(*numbers: str) -> list[Json]:
    """Patients with a result and a course. The ids of the server differ from the identifiers."""
    found: list[Json] = []
    for number in numbers:
        name = f"fhir-{number[::-1]}"
        subject = {"subject": {"reference": f"Patient/{name}"}}
        found += [patient(number, name), specimen(f"s{number[:3]}", DAY)]
        found.append(observation(number, specimen={"reference": f"Specimen/s{number[:3]}"}) | subject)
        found += [encounter(number) | subject, procedure(number) | subject]
    for at, each in enumerate(found):
        if each["resourceType"] not in ("Patient", "Specimen"):
            each["id"] = f"{each['resourceType']}-{at}"
    return found


def kinds(site: Site) -> set[str]:
    with ResourceStore(site.fhir_store) as store:
        return {name.partition("/")[0] for name in store.names()}


@pytest.mark.parametrize("method", ["search", "export"])
def test_resources_are_deleted_and_not_stored_again(tmp_path: Path, method: str) -> None:
    with serving(FhirServer(resources(GONE, OTHER))) as server:
        site = fhir_site(tmp_path, server.url, f'method = "{method}"\npage_size = 2')
        fetch(site, sleep=Waiting())
        assert set(read(site)) == {GONE, OTHER} and traces(site)
        done = withdraw(site, [GONE])
        assert done.erased.resources == 5
        assert not traces(site)
        path = site.folder / "site.toml"
        for text in ("retries = 1", "retries = 1\nrefresh_days = 1e-9"):  # what changed; then everything
            path.write_text(path.read_text().replace("retries = 1", text))
            server.asked.clear()
            fetch(Site.open(site.folder), sleep=Waiting())
            assert set(read(site)) == {OTHER} and not traces(site)
        assert not any(GONE[::-1] in path for path in server.asked)
        assert kinds(site) == {"Patient", "Specimen", "Observation", "Encounter", "Procedure"}


@pytest.mark.parametrize("method", ["search", "export"])
@pytest.mark.parametrize("includes", [True, False])
def test_patient_who_withdrew_before_the_first_fetch_is_not_stored(tmp_path: Path, method: str, includes: bool) -> None:
    with serving(FhirServer(resources(GONE, OTHER), includes=includes)) as server:
        site = fhir_site(tmp_path, server.url, f'method = "{method}"\npage_size = 1')
        withdraw(site, [GONE])
        fetch(site, sleep=Waiting())
        assert set(read(site)) == {OTHER} and not traces(site)


def test_interrupted_fetch_of_courses_misses_nobody_after_a_withdrawal(tmp_path: Path) -> None:
    """Queries name forty patients each: without one patient, the others are in other queries than before."""
    numbers = [f"{number:02}" for number in range(41)]
    with serving(FhirServer(resources(GONE, *numbers))) as server:
        site = fhir_site(tmp_path, server.url)
        asked = [0]

        def third_procedures(_: FhirServer, __: str) -> Answer | None:
            asked[0] += 1
            return Answer({}, 503) if asked[0] > 1 else None

        server.special["/r4/Procedure"] = third_procedures
        with pytest.raises(Refusal, match="E_FHIR_SILENT"):
            fetch(site, sleep=Waiting())
        withdraw(site, [GONE])
        server.special.clear()
        fetch(site, sleep=Waiting())
        with ResourceStore(site.fhir_store) as store:
            assert sum(1 for _ in store.resources("Procedure")) == 41
            assert sum(1 for _ in store.resources("Encounter")) == 41
        assert not traces(site)


def test_link_to_the_next_page_of_an_interrupted_search_is_forgotten(tmp_path: Path) -> None:
    with serving(FhirServer(resources(GONE, OTHER))) as server:
        site = fhir_site(tmp_path, server.url)
        fetch(site, sleep=Waiting())
        with ResourceStore(site.fhir_store) as store:
            store.write(is_open=True, number=0, next=f"{server.url}/Encounter?patient=fhir-{GONE[::-1]}")
        withdraw(site, [GONE])
        assert not traces(site)
        fetch(site, sleep=Waiting())
        assert set(read(site)) == {OTHER}


def test_parts_of_a_report_and_contained_or_logical_patients_are_recognised(tmp_path: Path) -> None:
    identifier = {"system": "https://hospital.example/mrn", "value": GONE}
    inside = {"resourceType": "Patient", "id": "in", "identifier": [identifier]}
    bare = observation("x") | {"id": "bare"}
    del bare["subject"]
    theirs = [
        observation("a") | {"id": "logical", "subject": {"identifier": identifier}},
        observation("b") | {"id": "contained", "subject": {"reference": "#in"}, "contained": [inside]},
        bare,
        {"resourceType": "DiagnosticReport", "id": "report", "status": "final", "code": bare["code"],
         "subject": {"identifier": identifier}, "result": [{"reference": "Observation/bare"}]},
    ]  # fmt: skip
    others = resources(OTHER)
    others.append(observation("c") | {"id": "shared", "subject": {"reference": f"Patient/fhir-{OTHER[::-1]}"}})
    theirs[-1]["result"].append({"reference": "Observation/shared"})  # it names another patient
    with serving(FhirServer([*theirs, *others])) as server:
        site = fhir_site(tmp_path, server.url, 'method = "export"')
        fetch(site, sleep=Waiting())
        assert traces(site)
        assert withdraw(site, [GONE]).erased.resources == 4
        fetch(site, sleep=Waiting())
        assert not traces(site)
        with ResourceStore(site.fhir_store) as store:
            assert {"Observation/bare", "Observation/logical", "DiagnosticReport/report"}.isdisjoint(store.names())
            assert "Observation/shared" in store.names()


def test_corrected_patient_is_stored_again(tmp_path: Path) -> None:
    """The server had given the identifier to the wrong Patient."""
    with serving(FhirServer(resources(GONE, OTHER))) as server:
        site = fhir_site(tmp_path, server.url, "refresh_days = 1e-9")
        withdraw(site, [GONE])
        fetch(site, sleep=Waiting())
        server.resources[0]["identifier"][0]["value"] = "5550001112223"
        fetch(site, sleep=Waiting())
        fetch(site, sleep=Waiting())
        assert set(read(site)) == {OTHER, "5550001112223"}


# --- all feeds, and a kill ---------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Site]:
    """A site with messages, resources and events of two patients, as if its settings had changed in between."""
    rig = Rig.make(tmp_path)
    with running(rig):
        for message in (sent("M1"), sent("M2", OTHER), of_both("M3")):
            rig.send(message)
    with serving(FhirServer(resources(GONE, OTHER))) as server:
        other = fhir_site(tmp_path / "other", server.url)
        fetch(other, sleep=Waiting())
    other.fhir_store.parent.rename(rig.site.folder / "fhir")
    rig.site.omop_events.parent.mkdir()
    rig.site.omop_events.write_bytes(
        write_lines({"patient": each, "seen": "2020-05-01"} for each in (GONE, OTHER, GONE))
    )
    (rig.site.folder / "omop" / ".0123.tmp").write_text(json.dumps({"patient": GONE}))
    (rig.site.logs / "failures.log").write_text(f"/exports/{NAME}/{GONE}.dcm\n")
    yield rig.site


def left_of_other(site: Site) -> tuple[int, set[str], bytes]:
    assert site.settings.laboratory is not None
    results, _ = read_pcr(site.settings.laboratory, today=date(2020, 6, 1))
    of_other = sum(each.patient_id == OTHER for each in results)
    return (
        of_other,
        kinds(site),
        write_lines(
            record
            for record in map(json.loads, site.omop_events.read_text().splitlines())
            if record["patient"] == OTHER
        ),
    )


def test_nothing_of_the_patient_is_left_of_any_feed(full: Site) -> None:
    before = left_of_other(full)
    assert traces(full)
    done = withdraw(full, [GONE])
    assert (done.erased.messages, done.erased.resources, done.erased.histories) == (2, 5, 1)
    assert not traces(full)
    assert left_of_other(full) == before
    again = withdraw(full, [GONE])
    assert (again.new, *vars(again.erased).values()) == (0, 0, 0, 0)


def killed(site: Site, at: int) -> bool:
    """Withdraw in a process that kills itself at a change of the disk, counted from 0; whether it came that far."""
    child = os.fork()
    if child == 0:
        count = [0]

        def counting(call: Callable[..., object]) -> Callable[..., object]:
            def change(*arguments: object, **options: object) -> object:
                if count[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                return call(*arguments, **options)

            return change

        os.fsync = counting(os.fsync)  # type: ignore[assignment]
        Path.unlink = counting(Path.unlink)  # type: ignore[method-assign,assignment]
        Path.replace = counting(Path.replace)  # type: ignore[method-assign,assignment]
        ResourceStore.write = counting(ResourceStore.write)  # type: ignore[method-assign,assignment]
        ResourceStore.compact = counting(ResourceStore.compact)  # type: ignore[method-assign,assignment]
        try:
            withdraw(site, [GONE])
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_kill_at_any_moment_loses_nothing_and_the_next_call_finishes(full: Site, tmp_path: Path) -> None:
    import shutil

    before, whole, at = left_of_other(full), tmp_path / "whole", 0
    shutil.copytree(full.folder, whole)
    while killed(full, at):
        assert left_of_other(full) == before
        withdraw(full, [GONE])
        assert left_of_other(full) == before and not traces(full), at
        assert GONE not in Withdrawn(full) and Withdrawn(full).names(GONE)
        assert len(Withdrawn(full)) == 1
        assert 1 <= sum(line.kind == "patient withdrawn" for line in read_lines(ledger_file(full))) <= 2
        shutil.rmtree(full.folder)
        shutil.copytree(whole, full.folder)
        at += 1
    assert at > 15
    assert not traces(full)
