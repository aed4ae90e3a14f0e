"""Fetching laboratory results from a FHIR server, over real HTTP and TLS connections on this machine."""

import json
import logging
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from models.refusal import Refusal
from pipeline.doctor.connectivity import fhir as fhir_lines
from pipeline.doctor.environment import secret_files
from pipeline.feeds.fhir_fetch import erase, fetch, last_fetch
from pipeline.records.laboratory import read_pcr
from pipeline.site.folder import Site, init_site
from pipeline.site.withdrawn import Withdrawn
from tests.pipeline.feeds.fhir_server import PLAIN, Answer, FhirServer, serving
from tests.pipeline.feeds.listener_rig import ENVIRONMENT
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.records.laboratory.test_fhir import (
    DETECTED,
    LOINC,
    NOT_DETECTED,
    TODAY,
    Json,
    concept,
    observation,
    patient,
    specimen,
)

SITE = """
[site]
name = "synthetic"
time_zone = "Europe/Paris"
[fhir]
url = "{url}"
retries = 1
{more}
[laboratory]
format = "fhir"
tests = ["COVPCR"]
[outcomes]
file = "outcomes.csv"
"""


pytestmark = pytest.mark.slow

COMMAND = "from federation.cli.main import main; main()"


def results(count: int) -> list[Json]:
    """Patients p0, p1, ... with one result each, every second one detected, and blood counts of the first."""
    found = []
    for number in range(count):
        found += [patient(str(number)), specimen(f"s{number}", "2020-04-01T08:30:00+02:00")]
        value = DETECTED if number % 2 else NOT_DETECTED
        found.append(observation(str(number), value, specimen={"reference": f"Specimen/s{number}"}))
    count_of_blood = observation("0", None, code=concept(LOINC, "718-7"), valueString="130 g/l")
    return [*found, {**count_of_blood, "id": "blood"}, {**patient("unrelated"), "id": "unrelated"}]


def make_site(folder: Path, url: str, more: str = "") -> Site:
    return init_site(folder / "site", SITE.format(url=url, more=more))


def read(site: Site) -> dict[str, bool | None]:
    """The results as an ingest reads them, by patient."""
    site = Site.open(site.folder)
    assert site.settings.laboratory is not None
    found, findings = read_pcr(site.settings.laboratory, time_zone="Europe/Paris", today=TODAY)
    assert findings == []
    return {each.patient_id: each.positive for each in found}


def expected(count: int) -> dict[str, bool | None]:
    return {str(number): bool(number % 2) for number in range(count)}


class Waiting:
    """Instead of a sleep: the seconds that the program would have waited."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def refused(site: Site) -> Refusal:
    with pytest.raises(Refusal) as caught:
        fetch(site, sleep=Waiting())
    return caught.value


def stored(site: Site) -> str:
    return site.fhir_store.read_bytes().decode("latin-1")


# --- search -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("includes", [True, False])
def test_search_follows_pages_and_fetches_patients_and_specimens(tmp_path: Path, includes: bool) -> None:
    with serving(FhirServer(results(7), includes=includes)) as server:
        site = make_site(tmp_path, server.url, "page_size = 3\nfrom_date = 2020-03-01")
        report = fetch(site)
        assert read(site) == expected(7)
        assert report.resources == 21
        searches = [path for path in server.asked if "code=" in path]
        assert len(searches) == 3
        assert "date=ge2020-03-01" in searches[0] and "94500-6" in searches[0] and "COVPCR" in searches[0]
        assert last_fetch(site) is not None
        (line,) = fhir_lines(site)
        assert line.status == "ok"
    assert "Synthetic" not in stored(site) and "unrelated" not in stored(site) and "718-7" not in stored(site)
    assert stat.S_IMODE(site.fhir_store.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.fhir_store.parent.stat().st_mode) == 0o700


def test_second_fetch_asks_only_for_changes_and_takes_corrections(tmp_path: Path) -> None:
    with serving(FhirServer(results(3))) as server:
        site = make_site(tmp_path, server.url)
        fetch(site)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for each in server.resources:
            each["meta"] = {"lastUpdated": "2020-04-02T00:00:00Z"}
        corrected = observation("0", DETECTED, status="corrected", meta={"lastUpdated": now})
        server.resources = [each for each in server.resources if each["id"] != "o0"] + [corrected]
        server.asked.clear()
        assert fetch(site).resources == 2  # and its patient
        assert "_lastUpdated=ge20" in server.asked[0]
        assert read(site) == {**expected(3), "0": True}


def test_deleted_results_disappear_when_everything_is_fetched_again(tmp_path: Path) -> None:
    with serving(FhirServer(results(4))) as server:
        site = make_site(tmp_path, server.url, "refresh_days = 1e-9")
        fetch(site)
        server.resources = [each for each in server.resources if each["id"] not in ("o3", "o2")]
        fetch(site)
        assert read(site) == expected(2)
        assert "Patient/p3" not in stored(site).replace("subject", "")


def test_interrupted_fetch_continues_at_the_same_page(tmp_path: Path) -> None:
    with serving(FhirServer(results(6))) as server:
        site = make_site(tmp_path, server.url, "page_size = 2")

        def fails(_: FhirServer, path: str) -> Answer | None:
            return Answer({}, 503) if "page=2" in path else None

        server.special["/r4/Observation"] = fails
        assert refused(site).code == "E_FHIR_SILENT"
        assert last_fetch(site) is None
        server.special.clear()
        server.asked.clear()
        fetch(site)
        assert server.asked[0].endswith("page=2")
        assert len(server.asked) == 1
        assert read(site) == expected(6)


@pytest.mark.parametrize(
    ("method", "place"),
    [("search", "page=1"), ("search", "/Patient/p4"), ("export", "/status/1"), ("export", "/files/Patient")],
)
def test_killed_fetch_continues(tmp_path: Path, method: str, place: str) -> None:
    """The command is killed (SIGKILL) when it asks for this page or file; then it runs again."""
    running: list[subprocess.Popen[bytes]] = []

    def kill(server: FhirServer, path: str) -> None:
        if place in path and running[-1].poll() is None and len(running) == 1:
            running[-1].kill()
            running[-1].wait()

    with serving(FhirServer(results(6), includes=False)) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"\npage_size = 2')
        server.polls = 1
        server.special |= {f"/r4/{each}": kill for each in ("Observation", "Patient/p4", "status/1", "files/Patient")}
        codes = []
        for _ in range(2):
            running.append(
                subprocess.Popen([sys.executable, "-c", COMMAND, "node", "pull", str(site.folder)], env=ENVIRONMENT)
            )
            codes.append(running[-1].wait(300))
            server.polls = 5
        assert codes == [-signal.SIGKILL, 0]
        assert read(site) == expected(6)
        starts = [path for path in server.asked if "$export" in path or ("code=" in path and "page=" not in path)]
        assert len(starts) == 1


@pytest.mark.parametrize(("status", "code"), [(410, ""), (404, ""), (400, "E_FHIR_ANSWER"), (500, "E_FHIR_ANSWER")])
def test_expired_page_begins_the_search_again(tmp_path: Path, status: int, code: str) -> None:
    """At once if the server says so, else at the next fetch."""
    with serving(FhirServer(results(6))) as server:
        site = make_site(tmp_path, server.url, "page_size = 2")
        busy = iter([Answer({}, 503), Answer({}, 503)])
        server.special["/r4/Observation"] = lambda _, path: next(busy, None) if "page=1" in path else None
        assert refused(site).code == "E_FHIR_SILENT"
        expired = iter([Answer({}, status)])
        server.special["/r4/Observation"] = lambda _, path: next(expired, None) if "page=1" in path else None
        if code:
            assert refused(site).code == code
        fetch(site)
        assert read(site) == expected(6)


def test_changed_settings_fetch_everything_again(tmp_path: Path) -> None:
    with serving(FhirServer(results(2))) as server:
        site = make_site(tmp_path, server.url)
        fetch(site)
        path = site.folder / "site.toml"
        path.write_text(path.read_text().replace("COVPCR", "OTHER"))
        server.asked.clear()
        fetch(Site.open(site.folder))
        assert "_lastUpdated" not in server.asked[0]


# --- faulty and hostile servers ---------------------------------------------------------------------------


def page(server: FhirServer, link: str) -> Answer:
    return Answer({"resourceType": "Bundle", "type": "searchset", "link": [{"relation": "next", "url": link}]})


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://127.0.0.1:1/r4/Observation?page=1",
        "https://attacker.example/r4/Observation",
        "http://localhost:{port}/r4/Observation",
        "http://127.0.0.1:{port}@attacker.example/r4",
        "https://127.0.0.1:{port}/r4/Observation",
        "//attacker.example/r4/Observation",
        "http://[broken",
        "file:///etc/passwd",
    ],
)
def test_link_to_another_server_is_not_followed(tmp_path: Path, elsewhere: str) -> None:
    with serving(FhirServer()) as server:
        site = make_site(tmp_path, server.url)
        server.special["/r4/Observation"] = lambda s, _: page(s, elsewhere.format(port=s.port))
        assert refused(site).code == "E_FHIR_ORIGIN"
        assert len(server.asked) == 1


def test_redirect_is_not_followed(tmp_path: Path) -> None:
    with serving(FhirServer()) as server:
        site = make_site(tmp_path, server.url)
        server.special["/r4/Observation"] = lambda s, _: Answer({}, 307, headers={"Location": f"{s.url}/other"})
        assert refused(site).code == "E_FHIR_ANSWER"
        assert len(server.asked) == 1


@pytest.mark.parametrize("link", ["Observation?second", "/r4/Observation?second", "?second"])
def test_relative_link_is_followed(tmp_path: Path, link: str) -> None:
    with serving(FhirServer()) as server:
        site = make_site(tmp_path, server.url)
        entry = [{"resource": each} for each in results(2)]
        last = Answer({"resourceType": "Bundle", "type": "searchset", "entry": entry})
        server.special |= {
            place: lambda s, path: last if "second" in path else page(s, link) for place in ("/r4/Observation", "/r4/")
        }
        fetch(site)
        assert read(site) == expected(2)


@pytest.mark.parametrize("repeats", [True, False])
def test_endless_pages_end(tmp_path: Path, repeats: bool) -> None:
    with serving(FhirServer()) as server:
        site = make_site(tmp_path, server.url, "max_pages = 20")
        server.special["/r4/Observation"] = lambda s, _: page(
            s, f"{s.url}/Observation?page={1 if repeats else len(s.asked)}"
        )
        assert refused(site).code == "E_FHIR_ENDLESS"
        assert len(server.asked) == (2 if repeats else 20)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(b"<Bundle/>", kind="application/fhir+xml"), "E_FHIR_ANSWER"),
        (Answer(b"<html/>", kind="text/html"), "E_FHIR_ANSWER"),
        (Answer(b"<Bundle/>"), "E_FHIR_ANSWER"),
        (Answer(b"[" * 100_000), "E_FHIR_ANSWER"),
        (Answer([1, 2]), "E_FHIR_ANSWER"),
        (Answer({"resourceType": "OperationOutcome"}), "E_FHIR_ANSWER"),
        (Answer(b" " * 33_000_000), "E_FHIR_SIZE"),
        (Answer(b"\x1f\x8b", headers={"Content-Encoding": "gzip"}), "E_FHIR_ANSWER"),
        (Answer({}, 403), "E_FHIR_AUTH"),
        (Answer({}, 404), "E_FHIR_ANSWER"),
        (Answer({}, 500), "E_FHIR_ANSWER"),
        (Answer({}, headers={"Content-Length": "100000"}), "E_FHIR_SILENT"),
    ],
)
def test_unexpected_response_is_refused(tmp_path: Path, answer: Answer, code: str) -> None:
    with serving(FhirServer()) as server:
        limit = 0.5 if code == "E_FHIR_SILENT" else 60
        site = make_site(tmp_path, server.url, f"timeout_seconds = {limit}")
        server.special["/r4/Observation"] = lambda *_: answer
        assert refused(site).code == code


def test_malformed_entries_are_left_out(tmp_path: Path) -> None:
    good = results(2)
    entries = [None, 1, {}, {"resource": []}, {"resource": {"resourceType": "Observation", "id": "../../x"}}]
    entries += [{"resource": {"resourceType": "Observation", "id": {"a": 1}}}, {"resource": {"resourceType": 7}}]
    entries += [{"fullUrl": 7, "resource": each} for each in good]
    with serving(FhirServer()) as server:
        site = make_site(tmp_path, server.url)
        server.special["/r4/Observation"] = lambda *_: Answer({"resourceType": "Bundle", "entry": entries, "link": "x"})
        fetch(site)
        assert read(site) == expected(2)


@pytest.mark.parametrize("method", ["search", "export"])
@pytest.mark.parametrize("name", [None, "", "../../x", "a b", 7, {"a": 1}, "x" * 201])
def test_result_without_a_valid_id_is_reported_for_its_patient(tmp_path: Path, method: str, name: Any) -> None:
    unnamed = {key: value for key, value in observation("0", DETECTED).items() if key != "id"}
    unnamed |= {} if name is None else {"id": name}
    other = {**unnamed, "code": concept(LOINC, "718-7"), "valueString": "130 g/l"}
    with serving(FhirServer([*results(6), unnamed, other])) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"')
        for _ in range(2):
            fetch(site, sleep=Waiting())
            site = Site.open(site.folder)
            assert site.settings.laboratory is not None
            found, findings = read_pcr(site.settings.laboratory, time_zone="Europe/Paris", today=TODAY)
            assert {each.patient_id: each.positive for each in found} == expected(6)
            assert [(each.reason.code, each.patient_id) for each in findings] == [("E_FHIR", "0")]
    assert "718-7" not in stored(site)


def reported(site: Site) -> list[tuple[str, str]]:
    """The findings of an ingest: code and patient."""
    site = Site.open(site.folder)
    assert site.settings.laboratory is not None
    _, findings = read_pcr(site.settings.laboratory, time_zone="Europe/Paris", today=TODAY)
    return sorted((each.reason.code, each.patient_id) for each in findings)


@pytest.mark.parametrize("method", ["search", "export"])
def test_patient_without_a_valid_id_is_reported(tmp_path: Path, method: str) -> None:
    """Whose result it is cannot be told, but it may be a positive one of this patient."""
    lost = observation("lost", DETECTED, subject={"reference": "Patient/p 0"})
    with serving(FhirServer([*results(6), {**patient("0"), "id": "p 0"}, lost])) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"')
        for _ in range(2):
            fetch(site, sleep=Waiting())
            assert reported(site) == [("E_FHIR", "0"), ("E_NO_IDENTIFIER", "")]


@pytest.mark.parametrize("method", ["search", "export"])
def test_specimen_without_a_valid_id_is_reported_for_a_patient_with_results(tmp_path: Path, method: str) -> None:
    unnamed = [
        {**specimen("s 0", "2020-04-03T08:30:00+02:00"), "subject": {"reference": f"Patient/{each}"}}
        for each in ("p0", "unrelated")
    ]
    result = observation("0", NOT_DETECTED, id="again", specimen={"reference": "Specimen/s 0"})
    with serving(FhirServer([*results(6), *unnamed, result])) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"')
        for _ in range(2):
            fetch(site, sleep=Waiting())
            assert reported(site) == [("E_FHIR", "0")]


def test_patient_without_a_valid_id_is_erased(tmp_path: Path) -> None:
    with serving(FhirServer([*results(4), {**patient("0"), "id": "p 0", "deceasedBoolean": True}])) as server:
        site = make_site(tmp_path, server.url, 'method = "export"')
        fetch(site, sleep=Waiting())
        Withdrawn(site).add([site.pseudonym("0")])
        assert erase(site) == 4, "two Patients, Specimen and Observation"
        fetch(site, sleep=Waiting())
        assert reported(site) == []


IDENTIFIED = {"identifier": [{"system": "urn:lab", "value": "F0"}]}
OLD, NEW = ({"meta": {"lastUpdated": f"{year}-04-02T10:00:00Z"}} for year in (2020, 2099))


@pytest.mark.parametrize("method", ["search", "export"])
@pytest.mark.parametrize(
    ("spoilt", "later", "forgotten"),
    [
        (observation("0"), observation("0", id="right"), True),  # only the id was corrected
        (observation("0", **IDENTIFIED, **OLD), observation("0", NOT_DETECTED, **IDENTIFIED, **NEW), True),
        (observation("0", **IDENTIFIED, **NEW), observation("0", NOT_DETECTED, **IDENTIFIED, **OLD), False),
        (observation("0", **IDENTIFIED), observation("0", NOT_DETECTED, **IDENTIFIED), False),  # which one is newer?
        (observation("0", **OLD), observation("0", NOT_DETECTED, **NEW), False),  # another test perhaps
        (observation("0", **IDENTIFIED, **OLD), observation("1", **IDENTIFIED, **NEW), False),
        (specimen("s0", "2020-04-01T08:00:00Z"), specimen("s0", "2020-04-01T08:00:00Z"), True),
        (specimen("s0", "2020-04-01T08:00:00Z"), specimen("s0", "2020-04-02T08:00:00Z"), False),
        (patient("0"), patient("0"), True),
        (patient("0") | OLD, patient("0") | {"deceasedBoolean": True} | NEW, False),
    ],
)
def test_report_is_forgotten_if_the_corrected_resource_is_known(
    tmp_path: Path, method: str, spoilt: Json, later: Json, forgotten: bool
) -> None:
    same = [each for each in results(20) if each["id"] != later["id"]]
    unnamed = spoilt | {"id": "a b"}
    refers = observation("5", id="refers", specimen={"reference": "Specimen/a b"})
    refers["subject"] = {"reference": "Patient/a b"} if spoilt["resourceType"] == "Patient" else refers["subject"]
    right = json.loads(json.dumps(refers).replace("a b", spoilt["id"]))
    with serving(FhirServer([*same, unnamed, refers])) as server:
        site = make_site(tmp_path, server.url, f'method = "{method}"')
        fetch(site, sleep=Waiting())
        assert "E_FHIR" in dict(reported(site))
        server.resources = [*same, later, right]
        fetch(site, sleep=Waiting())
        assert ("E_FHIR" not in dict(reported(site))) == forgotten


def test_result_without_a_valid_id_is_erased_with_its_patient(tmp_path: Path) -> None:
    with serving(FhirServer([*results(2), {**observation("0", DETECTED), "id": "a/b"}])) as server:
        site = make_site(tmp_path, server.url)
        fetch(site)
        Withdrawn(site).add([site.pseudonym("0")])
        assert erase(site) == 4, "Patient, Specimen and two Observations"
        assert read(site) == {"1": True}
        fetch(site)
        assert read(site) == {"1": True}


def test_busy_server_is_asked_again_after_the_time_that_it_states(tmp_path: Path) -> None:
    with serving(FhirServer(results(2))) as server:
        site, waiting = make_site(tmp_path, server.url), Waiting()
        busy = iter([Answer({}, 429, headers={"Retry-After": "42"})])
        server.special["/r4/Observation"] = lambda *_: next(busy, None)
        fetch(site, sleep=waiting)
        assert waiting.seconds == [42]
        assert read(site) == expected(2)


def test_nothing_of_a_patient_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(FhirServer(results(2), includes=False)) as server:
        site = make_site(tmp_path, server.url)
        fetch(site)
        server.special["/r4/Observation"] = lambda *_: Answer({"issue": "Patient/p0"}, 500)
        refusal = refused(site)
    assert "Patient" not in caplog.text + refusal.private + str(refusal)
    assert caplog.text == ""


# --- access -----------------------------------------------------------------------------------------------


def write_key(path: Path, key: Any) -> None:
    path.touch(mode=0o600)
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def smart(server: FhirServer, key: Path) -> str:
    return f'token_url = "{server.origin}/token"\nclient_id = "fedthorax"\nclient_key = "{key}"\nkey_id = "1"'


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_smart_backend_services_over_tls(tmp_path: Path, kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP384R1())
    write_key(tmp_path / "client.pem", key)
    authority = Authority.make(tmp_path)
    with serving(FhirServer(results(3), public_key=key.public_key()), authority.sign("fhir")) as server:
        more = smart(server, tmp_path / "client.pem")
        site = make_site(tmp_path, server.url, f'{more}\nca_certificate = "{authority.path}"\npage_size = 1')
        assert tmp_path / "client.pem" in secret_files(site)
        fetch(site)
        assert read(site) == expected(3)
        assert server.issued == 1
        server.valid_tokens.clear()  # the server revokes the token: a new one is requested
        path = site.folder / "site.toml"
        path.write_text(path.read_text().replace("COVPCR", "OTHER"))
        fetch(Site.open(site.folder))
        untrusting = make_site(tmp_path / "other", server.url, more)
        assert refused(untrusting).code == "E_FHIR_UNTRUSTED"


def test_revoked_token_is_replaced_once_within_a_fetch(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    write_key(tmp_path / "client.pem", key)
    with serving(FhirServer(results(4), public_key=key.public_key())) as server:
        site = make_site(tmp_path, server.url, smart(server, tmp_path / "client.pem") + "\npage_size = 2")

        def revoke(s: FhirServer, path: str) -> None:
            if "page=1" in path and s.issued == 1:
                s.valid_tokens.clear()

        server.special["/r4/Observation"] = revoke
        fetch(site)
        assert (server.issued, read(site)) == (2, expected(4))


def test_unregistered_key_and_readable_key_files_are_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    write_key(tmp_path / "client.pem", key)
    registered = ec.generate_private_key(ec.SECP384R1()).public_key()
    with serving(FhirServer(results(2), public_key=registered)) as server:
        site = make_site(tmp_path, server.url, smart(server, tmp_path / "client.pem"))
        assert refused(site).code == "E_FHIR_AUTH"
        (tmp_path / "client.pem").chmod(0o640)
        assert refused(site).code == "E_PACS_FILE"
        write_key(tmp_path / "client.pem", ec.generate_private_key(ec.SECP256R1()))
        (tmp_path / "client.pem").chmod(0o600)
        assert refused(site).code == "E_PACS_FILE"


@pytest.mark.parametrize("body", [b"[" * 60_000, b"{}", b"<html>", b'{"access_token": 7, "token_type": "bearer"}'])
def test_token_server_without_a_token_is_refused(tmp_path: Path, body: bytes) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    write_key(tmp_path / "client.pem", key)
    with serving(FhirServer(results(2), public_key=key.public_key())) as server:
        server.token = lambda form: Answer(body, kind=PLAIN)  # type: ignore[method-assign]
        assert refused(make_site(tmp_path, server.url, smart(server, tmp_path / "client.pem"))).code == "E_FHIR_AUTH"


def test_fixed_token_from_a_private_file(tmp_path: Path) -> None:
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("fixed\n")
    with serving(FhirServer(results(2), public_key=object(), valid_tokens={"fixed"})) as server:
        site = make_site(tmp_path, server.url, f'token_file = "{tmp_path / "token"}"')
        fetch(site)
        assert read(site) == expected(2)
        server.valid_tokens.clear()
        assert refused(site).code == "E_FHIR_AUTH"


@pytest.mark.parametrize(
    "more",
    [
        'client_id = "x"',
        'token_url = "http://login.example/token"\nclient_id = "x"\nclient_key = "k"',
        'token_file = "t"\ntoken_url = "https://login.example/token"\nclient_id = "x"\nclient_key = "k"',
        'ca_certificate = "ca.crt"',
        'file_origins = ["http://files.example"]',
        'file_origins = [""]',
        'group = "a/b"',
    ],
)
def test_open_or_contradictory_settings_are_refused(tmp_path: Path, more: str) -> None:
    with pytest.raises(Refusal, match="E_SETTINGS"):
        make_site(tmp_path, "http://127.0.0.1:1/r4", more)


@pytest.mark.parametrize("url", ["http://fhir.example/r4", "https://user:secret@fhir.example/r4", "ftp://x/r4", ""])
def test_address_without_tls_or_with_a_password_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(Refusal, match="E_SETTINGS"):
        make_site(tmp_path, url)


# --- Bulk Data Access -------------------------------------------------------------------------------------


def test_export_waits_as_told_and_stores_only_what_is_needed(tmp_path: Path) -> None:
    with serving(FhirServer(results(5))) as server:
        site, waiting = make_site(tmp_path, server.url, 'method = "export"\ngroup = "covid"'), Waiting()
        fetch(site, sleep=waiting)
        assert waiting.seconds == [7, 7]
        assert read(site) == expected(5)
        assert server.asked[0].startswith("/r4/Group/covid/$export?_type=Patient%2CSpecimen")
        assert "unrelated" not in stored(site) and "718-7" not in stored(site)
        server.asked.clear()
        fetch(site, sleep=waiting)
        assert "_since=2020-04-20T10%3A00%3A00Z" in server.asked[0]
        assert read(site) == expected(5)


def test_interrupted_export_continues_with_the_next_file(tmp_path: Path) -> None:
    with serving(FhirServer(results(5))) as server:
        site = make_site(tmp_path, server.url, 'method = "export"')
        server.special["/r4/files/Patient"] = lambda *_: Answer({}, 503)
        assert refused(site).code == "E_FHIR_SILENT"
        server.special.clear()
        server.asked.clear()
        fetch(site)
        assert [path for path in server.asked if "export" in path or "status" in path] == ["/r4/status/1"]  # deleted
        assert read(site) == expected(5)


def test_export_that_is_not_ready_is_waited_for_by_the_next_fetch(tmp_path: Path) -> None:
    with serving(FhirServer(results(2))) as server:
        site = make_site(tmp_path, server.url, 'method = "export"\nexport_hours = 0.001')
        assert refused(site).code == "E_FHIR_EXPORT_WAIT"
        server.polls = 5
        server.asked.clear()
        fetch(site)
        assert server.asked[0] == "/r4/status/1"
        assert read(site) == expected(2)


@pytest.mark.parametrize(("listed", "needs_token"), [(False, True), (True, True), (True, False)])
def test_files_of_another_server_need_to_be_listed(tmp_path: Path, listed: bool, needs_token: bool) -> None:
    """The token goes to a listed server only if the manifest asks for it."""
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("fixed\n")
    with serving(FhirServer(results(3))) as files, serving(FhirServer()) as server:
        origins = json.dumps([files.origin] if listed else [])
        more = f'method = "export"\nfile_origins = {origins}\ntoken_file = "{tmp_path / "token"}"'
        site = make_site(tmp_path, server.url, more)
        kinds = ("Observation", "Patient", "Specimen")
        output = [{"type": kind, "url": f"{files.url}/files/{kind}"} for kind in kinds]
        manifest = {"transactionTime": "2020-04-20T10:00:00Z", "requiresAccessToken": needs_token, "output": output}
        server.special["/r4/status/1"] = lambda *_: Answer(manifest, kind="application/json")
        if not listed:
            assert refused(site).code == "E_FHIR_ORIGIN"
            assert files.asked == []
            return
        fetch(site)
        assert read(site) == expected(3)
        assert files.with_token == [needs_token] * 3


def test_deleted_resources_of_an_export_are_removed(tmp_path: Path) -> None:
    with serving(FhirServer(results(3))) as server:
        site = make_site(tmp_path, server.url, 'method = "export"')
        fetch(site, sleep=Waiting())
        request = {"request": {"method": "DELETE", "url": "Observation/o2"}}
        bundle = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [request]}).encode()
        server.special["/r4/deleted"] = lambda *_: Answer(bundle, kind="application/fhir+ndjson")
        manifest = {
            "transactionTime": "2020-04-21T10:00:00Z",
            "output": [],
            "deleted": [{"url": f"{server.url}/deleted"}],
        }
        server.special["/r4/status/1"] = lambda *_: Answer(manifest, kind="application/json")
        fetch(site)
        assert read(site) == expected(2)


@pytest.mark.parametrize(
    ("path", "answer", "code"),
    [
        ("$export", Answer({}, 404), "E_FHIR_ANSWER"),
        ("$export", Answer({}, 202), "E_FHIR_ANSWER"),
        ("$export", Answer({}, 202, headers={"Content-Location": "https://attacker.example/s"}), "E_FHIR_ORIGIN"),
        ("$export", Answer({}, 202, headers={"Content-Location": "http://[broken"}), "E_FHIR_ORIGIN"),
        ("status/1", Answer({}, 500), "E_FHIR_ANSWER"),
        ("status/1", Answer({"output": [{"url": "https://me@attacker.example/f"}]}), "E_FHIR_ORIGIN"),
        ("status/1", Answer({}, 404), "E_FHIR_ANSWER"),
        ("status/1", Answer({"output": [{"url": 7}]}), "E_FHIR_ANSWER"),
        ("files/Observation", Answer({}, 404), "E_FHIR_ANSWER"),
        ("files/Observation", Answer(b"{}\n<xml/>", kind="application/fhir+ndjson"), "E_FHIR_ANSWER"),
        ("files/Observation", Answer(b"a" * 33_000_000, kind="application/fhir+ndjson"), "E_FHIR_SIZE"),
        ("files/Observation", Answer(b"<xml/>", kind="application/xml"), "E_FHIR_ANSWER"),
    ],
)
def test_faulty_export_is_refused_and_started_again(tmp_path: Path, path: str, answer: Answer, code: str) -> None:
    with serving(FhirServer(results(2))) as server:
        site = make_site(tmp_path, server.url, 'method = "export"')
        place = f"/r4/{'Patient/' if path == '$export' else ''}{path}"
        server.special[place] = lambda *_: answer
        assert refused(site).code == code
        server.special.clear()
        fetch(site, sleep=Waiting())
        assert read(site) == expected(2)
