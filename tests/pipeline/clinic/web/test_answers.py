"""Tests of answers in the API: content, files, pictures, PCR results, patient history and audit."""

import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from models.refusal import Refusal
from pipeline.clinic.audit import Audit
from pipeline.clinic.pictures import LUNGS, write_scan
from pipeline.clinic.reasons import CLINIC_FILE
from pipeline.clinic.records import Answer, Patient
from pipeline.clinic.results.write import PICTURE, REPORT
from pipeline.clinic.settings import Clinic, Hl7ResultsTable, NodeTable
from pipeline.clinic.store import new_id
from pipeline.clinic.unscored import LUNGS_JSON, keep_to_be_seen
from pipeline.clinic.web.inert_text import inert
from pipeline.clinic.web.view_audit import SITTING_SECONDS, ViewAudit
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.reasons import NO_LUNGS
from pipeline.scoring.reasons import UNFAMILIAR
from pipeline.scoring.score import Score
from pipeline.scoring.single_scan import OneScan
from pipeline.site.folder import init_site
from tests.helpers.scored_answers import SEVERE
from tests.pipeline.clinic.later_hospital import CSV, SITE
from tests.pipeline.clinic.web.conftest import NAME, refused

Clients = Callable[..., TestClient]
Put = Callable[..., Answer]
CT = datetime(2020, 3, 4, 10, 11, 12)


def test_answer_contains_probabilities_patient_study_and_model(answer_to: Put, client: Clients) -> None:
    answer = answer_to()
    told = client("read").get(f"/api/v1/answers/{answer.id}").json()
    assert told["score"]["probability"]["severe"] == SEVERE
    assert told["model"] == {"sha256": answer.model_sha256, "name": answer.model_name, "role": "live"}
    assert told["study"]["series_uid"] == answer.series_uid
    assert told["patient"]["id"] == "SYNTHETIC-1"
    assert told["pcr"] is None and told["pacs"] is None
    assert client("read").get("/api/v1/answers").json() == {"answers": [told]}
    job = client("read").get(f"/api/v1/jobs/{answer.job_id}").json()
    assert (job["state"], job["answer_id"], job["position"]) == ("answered", answer.id, None)


def test_worklist_tells_that_an_answer_has_a_pcr_result(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    answer, other = answer_to(), answer_to()
    with clinic.store() as store:
        waiting = store.jobs.add(new_id(), source="upload", asked_by="test")

    def revisions() -> dict[str, str | None]:
        listed = client("read").get("/api/v1/jobs").json()["jobs"]
        for job in listed:
            assert client("read").get(f"/api/v1/jobs/{job['id']}").json() == job
        return {job["id"]: job["answer_revision"] for job in listed}

    before = revisions()
    assert before[waiting.id] is None and before[answer.job_id] and before[answer.job_id] != before[other.job_id]
    with clinic.store() as store:  # neither a look nor a reader who takes the scan changes the answer
        client("read").get(f"/api/v1/answers/{answer.id}")
        store.assignments.take(answer.job_id, by="test", person="Leser^Anna")
    assert revisions() == before
    seen = [before[answer.job_id]]
    for result, day in (("positive", None), ("negative", None), ("negative", date(2021, 3, 4))):
        with clinic.store() as store:  # found in the laboratory's results, after the answer
            store.answers.set_pcr(answer.id, result, day, "laboratory", "test")
        after = revisions()
        assert after[answer.job_id] not in seen
        assert after == {**before, answer.job_id: after[answer.job_id]}
        assert not any(word in str(after) for word in ("positive", "negative"))  # the list itself shows no result
        seen.append(after[answer.job_id])
    assert revisions() == after


def test_answers_named_by_id_are_listed_without_the_others(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    made = [answer_to() for _ in range(3)]
    reader = client("read")

    def listed(*ids: str) -> list[str]:
        return [each["id"] for each in reader.get("/api/v1/answers", params={"id": ids}).json()["answers"]]

    assert listed(made[0].id) == [made[0].id]
    assert listed(made[0].id, made[2].id, "0" * 32) == [made[2].id, made[0].id]
    assert listed(made[0].id) == [made[0].id]
    with clinic.store() as store:
        told = [(each.action, each.output) for each in store.audit.records() if each.who == "a read"]
    assert told == [("list", {"shown": [made[0].id]}), ("list", {"shown": [made[2].id]})]  # nothing was opened
    for odd in ("x", made[0].id.upper() + "'"):
        assert refused(reader.get("/api/v1/answers", params={"id": odd})) == "E_REQUEST"
    assert refused(reader.get("/api/v1/answers", params={"id": [new_id() for _ in range(101)]})) == "E_REQUEST"


def test_control_characters_in_names_are_removed(answer_to: Put, client: Clients) -> None:
    answer = answer_to()
    for path in (f"answers/{answer.id}", f"jobs/{answer.job_id}", f"answers/{answer.id}/risk-assessment"):
        given = client("read").get(f"/api/v1/{path}")
        assert given.headers["content-type"].partition(";")[0] in ("application/json", "application/fhir+json")
        # Plain text in a response that no browser renders as HTML.
        assert "Doe^Jane<script>alert(1)</script>" in given.text
        assert not any(mark in given.text for mark in ("\u202e", "\\u202e", "\x07", "\\u0007", "\u2066", "\\n"))
        assert not any("Doe" in value or "\u202e" in value for value in given.headers.values())
    assert "\u202e" in NAME


def test_inert_changes_only_control_characters() -> None:
    for text in ("", "Müller^Zoë", "山田^太郎=ヤマダ^タロウ", "محمد", "𝕏 👩", "a\u0301", "<b>&amp;'\""):
        assert inert(text) == text
    assert inert("a\u200f\u202eb\x00\x1b[31m\u2028c\ud800") == "ab[31mc"
    assert inert({"a": ["\x00", 1, None, {"b": "\n"}], "c": (True, 0.5)}) == {
        "a": ["", 1, None, {"b": ""}],
        "c": [True, 0.5],
    }


def test_worklist_and_answers_are_paginated(answer_to: Put, client: Clients) -> None:
    made = [answer_to() for _ in range(3)]
    reader = client("read")
    first = reader.get("/api/v1/answers", params={"limit": 2}).json()["answers"]
    assert [each["id"] for each in first] == [made[2].id, made[1].id]
    rest = reader.get("/api/v1/answers", params={"before": first[-1]["id"]}).json()["answers"]
    assert [each["id"] for each in rest] == [made[0].id]
    jobs = reader.get("/api/v1/jobs", params={"limit": 1, "before": made[1].job_id}).json()["jobs"]
    assert [job["id"] for job in jobs] == [made[0].job_id]
    assert reader.get("/api/v1/jobs", params={"state": "waiting"}).json() == {"jobs": []}


def test_history_contains_only_one_patient(answer_to: Put, client: Clients) -> None:
    mine, other = answer_to(), answer_to(Patient("SYNTHETIC-2"))
    key = client("read").get(f"/api/v1/answers/{mine.id}").json()["patient"]["key"]
    history = client("read").get(f"/api/v1/patients/{key}/answers").json()["answers"]
    assert [each["id"] for each in history] == [mine.id]
    assert other.id not in json.dumps(history)
    assert client("read").get(f"/api/v1/patients/{'0' * 32}/answers").json() == {"answers": []}
    assert refused(client("read").get("/api/v1/patients/SYNTHETIC-1/answers")) == "E_REQUEST"


def test_files_are_served_completely(answer_to: Put, client: Clients) -> None:
    answer = answer_to()
    (answer.folder / REPORT).write_bytes(b"DICM")
    told = client("read").get(f"/api/v1/answers/{answer.id}").json()
    volumes = {f"{name}.nii.gz" for name in ("image", "labels", "lungs", "opacities", "saliency")}
    assert set(told["files"]) == {*volumes, REPORT}
    for name in told["files"]:
        given = client("read").get(f"/api/v1/answers/{answer.id}/files/{name}", headers={"Range": "bytes=0-1"})
        assert given.status_code == 200
        assert given.content == (answer.folder / name).read_bytes()
        assert given.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert "content-encoding" not in given.headers
    image = client("read").get(f"/api/v1/answers/{answer.id}/files/image.nii.gz")
    assert image.headers["content-type"] == "application/gzip"
    assert gzip.decompress(image.content)[344:347] == b"n+1"


@pytest.mark.parametrize("name", ["source.dcm", "source.json", "nothing", "%2e%2e", "..%2fclinic.sqlite", "score.json"])
def test_other_files_are_not_served(name: str, answer_to: Put, client: Clients) -> None:
    given = client("admin").get(f"/api/v1/answers/{answer_to().id}/files/{name}")
    assert refused(given) in ("E_NO_SUCH_FILE", "E_NO_SUCH_ADDRESS", "E_REQUEST")


def of_an_earlier_version(answer: Answer) -> dict[str, Any]:
    """The score as stored by an earlier version, which gave patients the levels of a phantom model."""
    points = {"severe": {"rule_out": {"threshold": 0.5, "met": True}, "rule_in": {"threshold": 0.6, "met": False}}}
    score = {**answer.score, "operating_points": points, "level": {"severe": "low", "pcr_positive": None}}
    del score["withheld"]
    score["input"] = {key: value for key, value in score["input"].items() if key != "is_phantom"}
    return score


def test_phantom_model_answer_of_a_patient_is_shown_without_verdict(answer_to: Put, client: Clients) -> None:
    answer = answer_to(score=of_an_earlier_version(answer_to()))
    for name in (REPORT, PICTURE, "score.json"):
        (answer.folder / name).write_bytes(b'{"level": {"severe": "low"}}')
    reader = client("read")
    told = reader.get(f"/api/v1/answers/{answer.id}").json()
    listed = reader.get("/api/v1/answers").json()["answers"][0]
    downloaded = reader.get(f"/api/v1/answers/{answer.id}/files/score.json")
    assert downloaded.headers["content-disposition"] == 'attachment; filename="score.json"'
    for score in (told["score"], listed["score"], downloaded.json()):
        assert score["withheld"].endswith("Its result is not valid for patients.")
        assert score["level"] == {"severe": None, "pcr_positive": None}
        assert score["operating_points"] == {}
        assert score["probability"]["severe"] == SEVERE
    assert not {REPORT, PICTURE} & set(told["files"])
    for name in (REPORT, PICTURE):
        assert refused(reader.get(f"/api/v1/answers/{answer.id}/files/{name}")) == "E_NOT_FOR_PATIENTS"
    sent = client("score").post(f"/api/v1/answers/{answer.id}/send")
    assert (sent.status_code, refused(sent)) == (409, "E_NOT_FOR_PATIENTS")


def test_answer_without_a_time_of_day_has_only_the_date(answer_to: Put, client: Clients) -> None:
    for has_clock, told in ((False, "2020-03-04"), (True, "2020-03-04T00:00:00")):
        answer = answer_to(acquired_at=datetime(2020, 3, 4), has_clock=has_clock)
        assert answer.has_clock is has_clock
        assert client("read").get(f"/api/v1/answers/{answer.id}").json()["study"]["acquired_at"] == told


def test_slices_are_served_as_png(answer_to: Put, client: Clients) -> None:
    answer, reader = answer_to(), client("read")
    planes = reader.get(f"/api/v1/answers/{answer.id}/slices").json()
    assert set(planes) == {"axial", "coronal", "sagittal"}
    for plane, about in planes.items():
        address = f"/api/v1/answers/{answer.id}/slices/{plane}"
        plain = reader.get(f"{address}/{about['start']}.png")
        assert plain.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(plain.content)).size == (about["columns"], about["rows"])
        with_map = reader.get(f"{address}/{about['start']}.png", params={"overlay": "saliency"})
        assert with_map.content != plain.content
        assert refused(reader.get(f"{address}/{about['count']}.png")) == "E_NO_SUCH_PICTURE"
        assert refused(reader.get(f"{address}/-1.png")) == "E_REQUEST"
    assert refused(reader.get(f"/api/v1/answers/{answer.id}/slices/oblique/0.png")) == "E_REQUEST"


def test_damaged_picture_is_a_refusal(answer_to: Put, client: Clients) -> None:
    answer, reader = answer_to(), client("read")
    path = answer.folder / LUNGS
    path.write_bytes(path.read_bytes()[:-20])
    picture = f"/api/v1/answers/{answer.id}/slices/axial/3.png"
    assert refused(reader.get(picture, params={"overlay": "lungs"})) == "E_PICTURE_DAMAGED"
    assert reader.get(picture).is_success


def test_pictures_of_an_unscored_scan_are_served_if_it_was_readable(
    client: Clients, clinic: Clinic, scored: tuple[Score, Series]
) -> None:
    with clinic.store() as store:
        for _ in range(3):
            store.jobs.add(new_id(), source="upload", asked_by="test")
        seen, unread = (store.jobs.take() or pytest.fail() for _ in range(2))
        seen.pictures.mkdir()
        write_scan(scored[0].volume, seen.pictures)
        for job in (seen, unread):
            store.jobs.refuse(job, Refusal(NO_LUNGS))
        waiting = store.jobs.newest("waiting")[0]
    reader = client("read")
    told = {job["id"]: job["has_pictures"] for job in reader.get("/api/v1/jobs").json()["jobs"]}
    assert told == {seen.id: True, unread.id: False, waiting.id: False}
    axial = reader.get(f"/api/v1/jobs/{seen.id}/slices").json()["axial"]
    assert axial["start"] == axial["count"] // 2
    address = f"/api/v1/jobs/{seen.id}/slices/axial/{axial['start']}.png"
    picture = reader.get(address)
    assert refused(reader.get(f"{address}?overlay=saliency")) == "E_REQUEST"
    assert refused(reader.get(f"{address}?overlay=lungs")) == "E_NO_SUCH_PICTURE"
    assert reader.get(f"/api/v1/jobs/{seen.id}/lungs").json() == {"lungs": None, "quality": None}
    assert Image.open(io.BytesIO(picture.content)).size == (axial["columns"], axial["rows"])
    for job in (unread, waiting):
        for path in ("slices", "slices/axial/0.png", "lungs"):
            assert refused(reader.get(f"/api/v1/jobs/{job.id}/{path}")) == "E_NO_SUCH_PICTURE"
    assert refused(reader.get(f"/api/v1/answers/{seen.id}/slices")) == "E_NO_SUCH_ANSWER"
    with clinic.store() as store:
        looked = [(each.who, each.job_id) for each in store.audit.records() if each.action == "look"]
    assert looked == [("a read", seen.id)]


def test_lungs_of_an_unscored_scan_are_measured(client: Clients, clinic: Clinic, scored: tuple[Score, Series]) -> None:
    """The model gave no answer, but the outline, the voxel counts and the table do not need one."""
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test")
        job = store.jobs.take() or pytest.fail()
        scan = OneScan(scored[1], scored[0].volume, other_series=0, unread=2, seconds=0.1)
        keep_to_be_seen(scan, job, clinic.work)
        store.jobs.refuse(job, Refusal(UNFAMILIAR, distance=9, limit=3))
    reader = client("read")
    told = reader.get(f"/api/v1/jobs/{job.id}/lungs").json()
    lungs, quality = told["lungs"], {check["name"]: check for check in told["quality"]}
    assert 1500 < lungs["regions"]["both"]["whole"]["ml"] < 8000 and "quality" not in lungs
    assert quality["lungs"]["value"] == pytest.approx(lungs["regions"]["both"]["whole"]["ml"], abs=1)
    assert (quality["unreadable_files"]["value"], quality["unreadable_files"]["code"]) == (2, "W_FILES_UNREADABLE")
    (job.pictures / LUNGS_JSON).write_text(json.dumps(lungs))  # as an earlier version kept it
    assert reader.get(f"/api/v1/jobs/{job.id}/lungs").json() == {"lungs": lungs, "quality": None}
    axial = reader.get(f"/api/v1/jobs/{job.id}/slices").json()["axial"]
    address = f"/api/v1/jobs/{job.id}/slices/axial/{axial['start']}.png"
    shown = ({}, {"overlay": "lungs"}, {"window": "soft"}, {"window": "-800,-100"})
    assert len({reader.get(address, params=params).content for params in shown}) == len(shown)
    assert reader.get(address, params={"overlay": "opacity_outlines"}).status_code == 200
    for wrong in ("brain", "-100", "0,99999999"):
        assert refused(reader.get(address, params={"window": wrong})) == "E_REQUEST"


def test_pcr_result_is_entered_under_the_name_of_the_caller(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    answer = answer_to(acquired_at=CT)
    address = f"/api/v1/answers/{answer.id}/pcr"
    told = client("score").put(address, json={"result": "positive", "collected_on": "2020-03-05"}).json()
    entered: dict[str, Any] = {"result": "positive", "collected_on": "2020-03-05", "source": "entered", "by": "a score"}
    entered["timing"] = {"days_from_ct": 1, "window": {"from_days": -7, "to_days": 2}, "is_outside": False}
    assert told["pcr"] == entered
    assert client("read").get(f"/api/v1/answers/{answer.id}").json()["pcr"] == entered
    assert client("admin").put(address, json={"result": "negative"}).json()["pcr"]["by"] == "a admin"
    tomorrow = (date.today() + timedelta(days=1)).isoformat()
    assert refused(client("score").put(address, json={"result": "negative", "collected_on": tomorrow})) == "E_REQUEST"
    assert refused(client("score").put(address, json={"result": "negative", "patient": "x"})) == "E_REQUEST"
    with clinic.store() as store:
        done = [(record.who, record.action) for record in store.audit.records()]
    assert done[-3:] == [("a score", "pcr"), ("a read", "look"), ("a admin", "pcr")]


@pytest.mark.parametrize(
    ("result", "days", "is_outside"),
    [
        ("positive", -8, True),
        ("positive", -7, False),
        ("positive", 2, False),
        ("positive", 3, True),
        ("negative", -3, True),
        ("negative", 7, False),
        ("indeterminate", 7, False),
        ("indeterminate", 8, True),
    ],
)
def test_specimen_outside_of_its_window_is_stored_and_marked(
    result: str, days: int, is_outside: bool, answer_to: Put, client: Clients
) -> None:
    answer = answer_to(acquired_at=CT)
    entry = {"result": result, "collected_on": (CT + timedelta(days=days)).date().isoformat()}
    client("score").put(f"/api/v1/answers/{answer.id}/pcr", json=entry)
    pcr = client("read").get(f"/api/v1/answers/{answer.id}").json()["pcr"]
    assert (pcr["result"], pcr["collected_on"]) == tuple(entry.values())
    assert (pcr["timing"]["days_from_ct"], pcr["timing"]["is_outside"]) == (days, is_outside)


def test_windows_are_those_of_the_node(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    site = init_site(clinic.folder.parent / "site", SITE + CSV + "[join]\npositive_from_days = -1\n")
    clinic.settings.node = NodeTable(folder=site.folder)
    answer = answer_to(acquired_at=CT)
    entry = {"result": "positive", "collected_on": (CT - timedelta(days=2)).date().isoformat()}
    timing = client("score").put(f"/api/v1/answers/{answer.id}/pcr", json=entry).json()["pcr"]["timing"]
    assert timing == {"days_from_ct": -2, "window": {"from_days": -1, "to_days": 2}, "is_outside": True}


@pytest.mark.parametrize(
    ("day", "changes", "code"),
    [
        ("1900-01-01", {}, "E_PCR_DAY"),
        ("2019-11-30", {}, "E_PCR_DAY"),
        ("2019-12-01", {}, None),
        ("2019-11-30", {"acquired_at": None}, "E_PCR_DAY"),
        ("2012-05-06", {"acquired_at": datetime(2012, 5, 6)}, None),  # shifted dates
        ("2020-03-04", {"acquired_at": datetime(2026, 3, 4), "patient": Patient("C", age_years=4.0)}, "E_PCR_DAY"),
        ("2021-06-04", {"acquired_at": datetime(2026, 3, 4), "patient": Patient("C", age_years=4.0)}, None),
    ],
)
def test_day_on_which_no_specimen_can_be_taken_is_refused(
    day: str, changes: dict[str, Any], code: str | None, answer_to: Put, client: Clients, clinic: Clinic
) -> None:
    answer = answer_to(**{"acquired_at": CT, **changes})
    address = f"/api/v1/answers/{answer.id}/pcr"
    response = client("score").put(address, json={"result": "positive", "collected_on": day})
    assert (None if response.status_code == 200 else refused(response)) == code
    with clinic.store() as store:
        assert (store.answers.get(answer.id).pcr is None) is (code is not None)


@pytest.mark.slow
@pytest.mark.parametrize("day", [0, 86400, "0", "86400", 0.0, True, "2020-03-05T00:00:00", "05.03.2020"], ids=repr)
def test_invalid_collection_date_of_a_specimen_is_refused(
    day: object, answer_to: Put, client: Clients, clinic: Clinic
) -> None:
    answer = answer_to()
    entry = {"result": "positive", "collected_on": day}
    assert refused(client("score").put(f"/api/v1/answers/{answer.id}/pcr", json=entry)) == "E_REQUEST"
    with clinic.store() as store:
        with pytest.raises(TypeError):
            store.answers.set_pcr(answer.id, "positive", day, "entered", "test")  # type: ignore[arg-type]
        assert store.answers.get(answer.id).pcr is None


def test_opening_an_answer_is_audited_once_per_viewing_session(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    now = [1000.0]
    client().app.state.view_audit = ViewAudit(lambda: now[0])  # type: ignore[attr-defined]
    first, second = answer_to(), answer_to()
    every = ("", "/slices", "/slices/axial/1.png", "/slices/axial/2.png", "/files/image.nii.gz", "/risk-assessment")

    def open_all(role: str, answer: Answer) -> None:
        for path in every:
            assert client(role).get(f"/api/v1/answers/{answer.id}{path}").status_code == 200

    def records() -> list[tuple[str, str, str | None, str | None]]:
        with clinic.store() as store:
            found = store.audit.records()
        return [(each.who, each.action, each.job_id, each.answer_id) for each in found if each.action in seen]

    seen = ("look", "list", "history")
    told = [
        ("a read", "look", first.job_id, first.id),
        ("a admin", "look", first.job_id, first.id),
        ("a read", "look", second.job_id, second.id),
    ]
    for role, answer in (("read", first), ("admin", first), ("read", second), ("read", first)):
        open_all(role, answer)
    assert records() == told
    now[0] += SITTING_SECONDS - 1
    open_all("read", first)
    now[0] += SITTING_SECONDS - 1  # the pause since the last access is shorter than the limit
    open_all("read", first)
    assert records() == told
    now[0] += SITTING_SECONDS
    open_all("read", first)
    assert records() == [*told, told[0]]
    assert client("read").get(f"/api/v1/answers/{'0' * 32}").status_code == 404
    for path in ("answers", f"patients/{'0' * 32}/answers", "answers"):
        assert client("read").get(f"/api/v1/{path}").status_code == 200
    assert records()[4:] == [("a read", "list", None, None), ("a read", "history", None, None)]


def test_answer_is_not_shown_if_the_access_cannot_be_audited(
    answer_to: Put, client: Clients, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"/api/v1/answers/{answer_to().id}"

    def fail(*_: object, **__: object) -> None:
        raise Refusal(CLINIC_FILE)

    with monkeypatch.context() as patch:
        patch.setattr(Audit, "add", fail)
        for _ in range(2):
            assert refused(client("read").get(address)) == "E_CLINIC_FILE"
    assert client("read").get(address).status_code == 200
    with clinic.store() as store:
        assert store.audit.records()[-1].action == "look"


def test_shadow_answer_is_not_accessible(answer_to: Put, client: Clients) -> None:
    live = answer_to()
    shadow = answer_to(job_id=live.job_id, role="shadow", model_sha256="e" * 64)
    admin = client("admin")
    assert [each["id"] for each in admin.get("/api/v1/answers").json()["answers"]] == [live.id]
    for path in ("", "/files/image.nii.gz", "/slices", "/slices/axial/0.png", "/risk-assessment"):
        assert refused(admin.get(f"/api/v1/answers/{shadow.id}{path}")) == "E_NO_SUCH_ANSWER"
    assert refused(admin.put(f"/api/v1/answers/{shadow.id}/pcr", json={"result": "negative"})) == "E_NO_SUCH_ANSWER"
    assert refused(admin.post(f"/api/v1/answers/{shadow.id}/send")) == "E_NO_SUCH_ANSWER"


def test_failed_message_is_listed_with_what_to_do_and_sent_again(
    answer_to: Put, client: Clients, clinic: Clinic
) -> None:
    answer = answer_to()
    address = f"/api/v1/answers/{answer.id}/send"
    assert refused(client("score").post(f"{address}?target=hl7")) == "E_NO_RESULTS"
    clinic.settings.results.hl7 = Hl7ResultsTable(host="127.0.0.1", send="always")
    with clinic.store() as store:
        store.deliveries.queue(answer.id, "hl7")
        (waiting,) = store.deliveries.of(answer.id)
        store.deliveries.set(replace(waiting, state="failed", attempts=1, code="E_HL7_REFUSED", due_at=None))
    (listed,) = client("read").get("/api/v1/deliveries").json()["deliveries"]
    assert (listed["answer_id"], listed["target"], listed["code"]) == (answer.id, "hl7", "E_HL7_REFUSED")
    assert "send the result again" in listed["remedy"]
    assert client("score").get(f"/api/v1/answers/{answer.id}").json()["deliveries"] == [
        {key: value for key, value in listed.items() if key not in ("answer_id", "job_id", "due_at")}
    ]
    told = client("score").post(f"{address}?target=hl7").json()
    assert [(each["target"], each["state"], each["attempts"]) for each in told["deliveries"]] == [("hl7", "waiting", 1)]
    assert client("read").get("/api/v1/deliveries").json() == {"deliveries": []}
    with clinic.store() as store:
        last = store.audit.records()[-1]
        assert (last.who, last.action, last.output) == ("a score", "send", {"target": "hl7"})
    assert client("score").post(f"{address}?target=fax").status_code == 422


def test_sending_to_the_pacs_is_audited(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    answer = answer_to()
    address = f"/api/v1/answers/{answer.id}/send"
    refusal = client("score").post(address)
    assert (refusal.status_code, refused(refusal)) == (409, "E_NO_RESULTS")
    (answer.folder / REPORT).write_bytes(b"DICM")
    clinic.settings.results.send = "on_request"
    assert refused(client("score").post(address)) == "E_NOT_ACCEPTED"
    clinic.settings.results.send = "always"
    told = client("score").post(address)
    assert told.status_code == 202
    assert told.json()["deliveries"] == [told.json()["pacs"]]
    assert told.json()["pacs"] == {
        "target": "pacs",
        "state": "waiting",
        "attempts": 0,
        "code": None,
        "remedy": None,
        "sent_at": None,
        "decision_id": None,
    }
    with clinic.store() as store:
        assert (store.audit.records()[-1].who, store.audit.records()[-1].action) == ("a score", "send")
