"""Tests of uploads: files are stored unchanged under neutral names, and incomplete uploads leave no file."""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.settings import Clinic
from pipeline.clinic.web import uploads
from tests.pipeline.clinic.web.conftest import ADDRESS, refused

Clients = Callable[..., TestClient]
SCANS = "/api/v1/scans"
ODD = "Doe^Jane\u202e<script>.dcm"


def files_of(clinic: Clinic) -> dict[str, bytes]:
    """The files in scans/, by their name within the job's folder."""
    return {path.name: path.read_bytes() for path in clinic.scans.rglob("*") if path.is_file()}


def test_uploaded_files_are_stored_unchanged_without_their_names(client: Clients, clinic: Clinic) -> None:
    contents = [os.urandom(size) for size in (0, 1, 1000, 700_000)]
    contents[1] = b"\r\n--boundary--\r\n"
    answer = client("score").post(SCANS, files=[("files", (ODD, content)) for content in contents])
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["state"], job["position"], job["source"], job["asked_by"]) == ("waiting", 1, "upload", "a score")
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert files_of(clinic) == {f"{number}.dcm": content for number, content in enumerate(contents, start=1)}
    (folder,) = clinic.scans.iterdir()
    assert folder.name == job["id"]
    assert folder.stat().st_mode & 0o077 == 0
    assert client("read").get(f"/api/v1/jobs/{job['id']}").json() == job


def test_known_suffixes_are_kept_and_accompanying_files_are_dropped(client: Clients, clinic: Clinic) -> None:
    names = ["a/b/IM0001", "c.NII.GZ", "d.mha", "e.zip", "f.exe", "g\\.DS_Store", "DICOMDIR", "x/README", "", ".hidden"]
    boundary = "b"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n{name}\r\n'
        for name in names
    ]
    parts.append(f'--{boundary}\r\nContent-Disposition: form-data; name="note"\r\n\r\nno file\r\n--{boundary}--\r\n')
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = client("score").post(SCANS, content="".join(parts), headers=headers)
    assert answer.status_code == 202, answer.text
    assert files_of(clinic) == {"1.dcm": b"a/b/IM0001", "2.nii.gz": b"c.NII.GZ", "3.mha": b"d.mha", "4.zip": b"e.zip"}


@pytest.mark.parametrize("kind", ["application/zip", "application/octet-stream"])
def test_zip_is_stored_unchanged(kind: str, client: Clients, clinic: Clinic) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("IM0001", os.urandom(600_000))
    answer = client("score").post(SCANS, content=packed.getvalue(), headers={"Content-Type": kind})
    assert answer.status_code == 202, answer.text
    assert files_of(clinic) == {"1.zip": packed.getvalue()}


def test_series_to_score_can_be_specified(client: Clients, clinic: Clinic) -> None:
    files = {"files": ("a", b"b")}
    assert client("score").post(SCANS, files=files, params={"series_uid": "1.2.3"}).status_code == 202
    assert refused(client("score").post(SCANS, files=files, params={"series_uid": "1..2"})) == "E_REQUEST"
    with clinic.store() as store:
        (job,) = store.jobs.newest()
    assert job.series_uid == "1.2.3"


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (PART + b"cut off", FORM, "E_UPLOAD_BROKEN"),
        (PART + b"whole\r\n--b\r\n", FORM, "E_UPLOAD_BROKEN"),
        (b"no form", FORM, "E_UPLOAD_BROKEN"),
        (PART + b"a\r\n--b--\r\n", {"Content-Type": "multipart/form-data"}, "E_UPLOAD_BROKEN"),
        (PART, {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, "E_UPLOAD_BROKEN"),
        (b"--b\r\n" + b"x" * 50_000 + b": y\r\n\r\n", FORM, "E_UPLOAD_BROKEN"),
        (b"--b--\r\n", FORM, "E_UPLOAD_EMPTY"),
        (PART.replace(b'; filename="a"', b"") + b"a\r\n--b--\r\n", FORM, "E_UPLOAD_EMPTY"),
        (b"", {"Content-Type": "application/zip"}, "E_UPLOAD_EMPTY"),
        (PART.replace(b'"a"', b'"letter.pdf"') + b"a\r\n--b--\r\n", FORM, "E_UPLOAD_NO_SCAN"),
        (b"{}", {"Content-Type": "application/json"}, "E_REQUEST_TYPE"),
        (b"{}", {}, "E_REQUEST_TYPE"),
        (b"a", {"Content-Type": "multipart/mixed; boundary=b"}, "E_REQUEST_TYPE"),
    ],
)
def test_invalid_upload_is_refused_and_leaves_no_file(
    content: bytes, headers: dict[str, str], code: str, client: Clients, clinic: Clinic
) -> None:
    assert refused(client("score").post(SCANS, content=content, headers=headers)) == code
    assert list(clinic.scans.iterdir()) == []


def test_too_large_upload_leaves_no_file(client: Clients, clinic: Clinic) -> None:
    clinic.settings.limits.upload_mb = 1

    def pieces() -> Iterator[bytes]:
        yield PART
        for _ in range(30):
            yield b"x" * 50_000

    for content in (b"".join(pieces()), pieces()):
        answer = client("score").post(SCANS, content=content, headers=FORM)
        assert (answer.status_code, refused(answer)) == (413, "E_REQUEST_SIZE")
        assert list(clinic.scans.iterdir()) == []


def test_upload_of_too_many_files_leaves_no_file(
    client: Clients, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_ENTRIES", 3)
    answer = client("score").post(SCANS, files=[("files", (f"{n}.dcm", b"x")) for n in range(4)])
    assert (answer.status_code, refused(answer)) == (413, "E_UPLOAD_FILES")
    assert list(clinic.scans.iterdir()) == []


def test_client_disconnect_leaves_no_file(client: Clients, clinic: Clinic) -> None:
    """Call the application as a server would: half of the body, then a disconnect."""
    asking = client("score")
    messages = [
        {"type": "http.request", "body": PART + b"x" * 600_000, "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = []
    seen = []

    async def receive() -> dict[str, object]:
        seen.append(len(list(clinic.scans.rglob("*.dcm"))))
        return messages.pop(0)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    headers = [
        (b"host", b"localhost"),
        (b"authorization", asking.headers["authorization"].encode()),
        (b"content-type", FORM["Content-Type"].encode()),
    ]
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": SCANS, "raw_path": SCANS.encode(), "query_string": b"", "root_path": "", "headers": headers},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8765), "state": {}},
    }
    anyio.run(asking.app, scope, receive, send)
    assert seen == [0, 1]  # writing to the disk had begun
    assert sent == []
    assert list(clinic.scans.iterdir()) == []
    with clinic.store() as store:
        assert store.jobs.newest() == []


def test_full_queue_is_refused_and_leaves_no_file(client: Clients, clinic: Clinic) -> None:
    clinic.settings.limits.waiting_scans = 2
    files = {"files": ("a", b"b" * 200_000)}
    assert [client("score").post(SCANS, files=files).status_code for _ in range(2)] == [202, 202]
    answer = client("score").post(SCANS, files=files)
    assert (answer.status_code, refused(answer)) == (429, "E_QUEUE_FULL")
    assert int(answer.headers["retry-after"]) > 0
    assert len(list(clinic.scans.iterdir())) == 2


def test_full_disk_is_refused(client: Clients, clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.clinic.web.scans.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1})())
    answer = client("score").post(SCANS, files={"files": ("a", b"b")})
    assert (answer.status_code, refused(answer)) == (503, "E_DISK_FULL")
    assert list(clinic.scans.iterdir()) == []


def test_failed_write_leaves_no_file(client: Clients, clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert refused(client("score").post(SCANS, files={"files": ("a", b"b")})) == "E_DISK_FULL"
    assert list(clinic.scans.iterdir()) == []


def test_uploaded_files_stay_inside_the_clinic_folder(client: Clients, clinic: Clinic, tmp_path: Path) -> None:
    answer = client("score").post(SCANS, files={"files": ("../../../evil.dcm", b"b")})
    assert answer.status_code == 202
    assert [path.name for path in tmp_path.rglob("*.dcm")] == ["1.dcm"]
    assert ADDRESS not in answer.text
