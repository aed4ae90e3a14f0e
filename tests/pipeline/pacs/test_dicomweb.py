"""Tests of the DICOMweb client against a scripted local server: paging, filters, error codes, broken responses."""

import base64
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.pacs.dicomweb import DicomWebPacs, split_multipart
from pipeline.pacs.queries import RemoteSeries, StudyQuery
from pipeline.site.pacs_settings import DicomWebTable

BOUNDARY = b"a-boundary"
SERIES = RemoteSeries("CANARY-0042", "", "A1", "1.2.3141", "1.2.3141.1", "CT", "CHEST", 3)
IDENTIFYING = ("CANARY", "3141", "127.0.0.1", "localhost")
Answer = tuple[int, dict[str, str], bytes]


class Request:
    """A request that the server received; `path` is without the query."""

    def __init__(self, target: str, headers: Any) -> None:
        parts = urlsplit(target)
        self.target, self.path, self.headers = target, parts.path, headers
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}


class Server:
    """Answers with a function, and records the requests."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                request = Request(self.path, self.headers)
                outer.requests.append(request)
                status, headers, body = answer(request)
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """No logging."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


def as_json(answers: list[dict[str, Any]]) -> Answer:
    return 200, {"Content-Type": "application/dicom+json"}, json.dumps(answers).encode()


def attributes(**values: Any) -> dict[str, Any]:
    """DICOM JSON: each tag with one value."""
    return {tag.removeprefix("t"): {"vr": "UN", "Value": [value]} for tag, value in values.items()}


def multipart(*bodies: bytes, ends: bool = True) -> bytes:
    parts = b"".join(
        b"--" + BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n" for body in bodies
    )
    return parts + (b"--" + BOUNDARY + b"--" if ends else b"")


def related(body: bytes) -> Answer:
    kind = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY.decode()}"'
    return 200, {"Content-Type": kind}, body


@contextmanager
def asking(answer: Callable[[Request], Answer], folder: Path, **options: Any) -> Iterator[tuple[DicomWebPacs, Server]]:
    with Server(answer).running() as server:
        table = DicomWebTable(**{"url": f"{server.url}/dicom-web/", "timeout_seconds": 5.0} | options)
        with DicomWebPacs(table, folder) as pacs:
            yield pacs, server


def refusal(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    assert not any(word in f"{caught.value} {caught.value.remedy}" for word in IDENTIFYING)
    return caught.value


# --- queries ------------------------------------------------------------------------------------------------------


def hospital(request: Request, *, page: int) -> Answer:
    """Five studies of two series each, at most `page` results in one response."""
    offset = int(request.query.get("offset", 0))
    if request.path == "/dicom-web/studies":
        studies = [
            attributes(t0020000D=f"1.{number}", t00100020=f" P{number} ", t00080050="A1", t00100021="HOSP")
            for number in range(5)
        ]
        return as_json(studies[offset : offset + page])
    if request.path.endswith("/series"):
        study = request.path.split("/")[3]
        series = [
            attributes(t0020000E=f"{study}.{n}", t00080060="CT", t00180015="CHEST", t00201209=7) for n in range(2)
        ]
        return as_json(series[offset : offset + page])
    images = [attributes(t00080018=f"1.1.1.{number}") for number in range(9)]
    return as_json(images[offset : offset + page])


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_all_pages_are_requested(tmp_path: Path, page: int) -> None:
    with asking(lambda request: hospital(request, page=page), tmp_path) as (pacs, _):
        found = pacs.find(StudyQuery())
        assert sorted(each.series_uid for each in found) == sorted(f"1.{s}.{n}" for s in range(5) for n in range(2))
        assert found[0] == RemoteSeries("P0", "HOSP", "A1", "1.0", "1.0.0", "CT", "CHEST", 7)
        assert pacs.images(SERIES) == {f"1.1.1.{number}" for number in range(9)}


def test_server_that_ignores_paging_causes_no_endless_loop(tmp_path: Path) -> None:
    def always_all(request: Request) -> Answer:
        request.query.pop("offset")
        return hospital(request, page=1000)

    with asking(always_all, tmp_path) as (pacs, server):
        assert len(pacs.find(StudyQuery())) == 10
        assert len(server.requests) == 2 + 5 * 2


FIRST_DAY = date(2021, 1, 1)


class Archive:
    """A server with `studies` studies over `days` days that returns at most 100 results and ignores `offset`.

    `ignores_days`: returns the same for each period. `says_more`: sends the header Warning if it leaves some out.
    `times`: the StudyTime of each study, for a server that follows it; studies without one are in no period of a day.
    """

    def __init__(
        self,
        *,
        studies: int,
        days: int,
        ignores_days: bool = False,
        says_more: bool = False,
        times: Sequence[str] = (),
    ) -> None:
        day = [f"{FIRST_DAY + timedelta(number % days):%Y%m%d}" for number in range(studies)]
        self.studies = [
            attributes(t0020000D=f"1.2.{number + 1}", t00080020=each, t00100020="CANARY")
            for number, each in enumerate(day)
        ]
        for study, time in zip(self.studies, times, strict=False):
            study.update(attributes(t00080030=time))
        self.ignores_days, self.says_more, self.most, self.ignores_times = ignores_days, says_more, 100, not times

    def answer(self, request: Request) -> Answer:
        if request.path.endswith("/series"):
            return as_json([attributes(t0020000E=f"{request.path.split('/')[3]}.1", t00080060="CT")])
        first, _, last = request.query.get("StudyDate", "-").partition("-")
        found = [
            study
            for study in self.studies
            if self.ignores_days or first <= study["00080020"]["Value"][0] <= (last or "9")
        ]
        if (asked := request.query.get("StudyTime")) and not self.ignores_times:
            begin, _, end = asked.partition("-")
            found = [study for study in found if (begin or "0") <= study["00080030"]["Value"][0] <= (end or "9")]
        status, headers, body = as_json(found[: self.most])
        if self.says_more and len(found) > self.most:
            headers["Warning"] = '299 server: "There are more additional results that can be requested"'
        return status, headers, body


@pytest.mark.parametrize("most", [100, 150])
def test_search_is_repeated_with_fewer_days_if_the_server_has_a_maximum_and_no_pages(tmp_path: Path, most: int) -> None:
    archive = Archive(studies=400, days=9)
    archive.most = most
    with asking(archive.answer, tmp_path) as (pacs, server):
        found = pacs.find(StudyQuery(from_date=FIRST_DAY))
    assert len(found) == len({series.series_uid for series in found}) == 400
    asked = [request.path for request in server.requests if request.path.endswith("/series")]
    assert len(set(asked)) == 400 and len(asked) == 800  # each study once: the second answer repeats the first


def test_warning_of_the_server_counts_however_few_results_it_returns(tmp_path: Path) -> None:
    archive = Archive(studies=30, days=9, says_more=True)
    archive.most = 7
    with asking(archive.answer, tmp_path) as (pacs, _):
        assert len(pacs.find(StudyQuery())) == 30
        archive.most = 3  # there are four on some days
        assert refusal(lambda: pacs.find(StudyQuery())).code == "E_PACS_TRUNCATED"
        assert len(pacs.find(StudyQuery(at_most=2))) == 2


def clock(second: int) -> str:
    return f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}"


ROUND_THE_CLOCK = [clock(second) for second in range(0, 86_400, 86_400 // 450)]
EDGES = ["00", "0000", "1159", "115959.999999", "12", "1200", "120000", "235959.999999", "235960"]


@pytest.mark.parametrize(
    "times", [ROUND_THE_CLOCK, [*EDGES, *ROUND_THE_CLOCK], [clock(43_200 + n % 120) for n in range(150)]]
)
@pytest.mark.parametrize("query", [StudyQuery(), StudyQuery(from_date=FIRST_DAY, to_date=FIRST_DAY)])
def test_one_day_is_divided_by_study_time(tmp_path: Path, times: list[str], query: StudyQuery) -> None:
    archive = Archive(studies=len(times), days=1, times=times)
    with asking(archive.answer, tmp_path) as (pacs, server):
        assert len(pacs.find(query)) == len(times)
    asked = [request.query for request in server.requests if "StudyTime" in request.query]
    assert asked and {each["StudyDate"] for each in asked} == {"20210101-20210101"}


def test_one_minute_that_overflows_is_refused(tmp_path: Path) -> None:
    archive = Archive(studies=101, days=1, times=["101112"] * 101)
    with asking(archive.answer, tmp_path) as (pacs, server):
        assert refusal(lambda: pacs.find(StudyQuery())).code == "E_PACS_TRUNCATED"
    assert "1011-101159.999999" in {request.query.get("StudyTime") for request in server.requests}


def test_study_that_its_time_does_not_find_is_not_lost_silently(tmp_path: Path) -> None:
    """Others like it could be among those that the server left out."""
    archive = Archive(studies=450, days=1, times=["", *ROUND_THE_CLOCK[1:]])
    with asking(archive.answer, tmp_path) as (pacs, _):
        assert refusal(lambda: pacs.find(StudyQuery())).code == "E_PACS_TRUNCATED"


def test_server_that_ignores_study_time_is_refused_at_once(tmp_path: Path) -> None:
    archive = Archive(studies=450, days=1, times=ROUND_THE_CLOCK)
    archive.ignores_times = True
    with asking(archive.answer, tmp_path) as (pacs, server):
        assert refusal(lambda: pacs.find(StudyQuery(from_date=FIRST_DAY, to_date=FIRST_DAY))).code == "E_PACS_TRUNCATED"
    assert len([request for request in server.requests if "StudyTime" in request.query]) == 2


@pytest.mark.parametrize(
    ("status", "code"), [(400, "E_PACS_TRUNCATED"), (501, "E_PACS_TRUNCATED"), (503, "E_PACS_SILENT")]
)
def test_server_that_rejects_study_time_is_refused_as_one_that_returns_too_little(
    tmp_path: Path, status: int, code: str
) -> None:
    archive = Archive(studies=450, days=1, times=ROUND_THE_CLOCK)

    def answer(request: Request) -> Answer:
        return (status, {}, b"") if "StudyTime" in request.query else archive.answer(request)

    with asking(answer, tmp_path) as (pacs, _):
        refused = refusal(lambda: pacs.find(StudyQuery(from_date=FIRST_DAY, to_date=FIRST_DAY)))
        assert refused.code == code
        assert code == "E_PACS_SILENT" or "first 100 results" in refused.says
        assert len(pacs.find(StudyQuery(at_most=2))) == 2


@pytest.mark.parametrize("options", [{"days": 1}, {"days": 9, "ignores_days": True}], ids=["one day", "ignored days"])
def test_results_that_the_server_leaves_out_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with asking(Archive(studies=101, **options).answer, tmp_path) as (pacs, server):
        refused = refusal(lambda: pacs.find(StudyQuery()))
    assert refused.code == "E_PACS_TRUNCATED" and "first 100 results" in refused.says
    assert len([request for request in server.requests if request.path.endswith("/studies")]) < 70


def test_warning_on_pages_that_can_be_requested_is_no_refusal(tmp_path: Path) -> None:
    def warned(request: Request) -> Answer:
        if request.path.endswith("/series"):
            return hospital(request, page=1000)
        status, headers, body = hospital(request, page=2)
        if len(json.loads(body)) == 2:
            headers["Warning"] = '299 http://localhost: "There are 3 additional results that can be requested"'
        return status, headers, body

    with asking(warned, tmp_path) as (pacs, _):
        assert len(pacs.find(StudyQuery())) == 10
        assert len(pacs.images(SERIES)) == 9


def test_series_of_a_study_that_the_server_leaves_out_are_refused(tmp_path: Path) -> None:
    def answer(request: Request) -> Answer:
        status, headers, body = hospital(request, page=1000)
        if request.path.endswith("/series"):
            headers["Warning"] = "299 PACS: The number of results exceeded the maximum supported by the server"
        return status, headers, body

    with asking(answer, tmp_path) as (pacs, _):
        assert refusal(lambda: pacs.find(StudyQuery())).code == "E_PACS_TRUNCATED"


def test_number_of_images_is_that_of_the_series(tmp_path: Path) -> None:
    with asking(lambda request: hospital(request, page=1), tmp_path) as (pacs, _):
        assert [pacs.image_count("1.3", uid) for uid in ("1.3.1", "1.3.7")] == [7, None]


@pytest.mark.parametrize(("listed", "in_series", "is_refused"), [(100, 300, True), (100, 100, False), (60, 300, False)])
def test_list_of_images_that_the_server_cuts_is_refused(
    tmp_path: Path, listed: int, in_series: int, is_refused: bool
) -> None:
    answer = as_json([attributes(t00080018=f"1.2.{number + 1}") for number in range(listed)])
    series = replace(SERIES, images=in_series)
    with asking(lambda request: answer, tmp_path) as (pacs, _):
        if is_refused:
            assert refusal(lambda: pacs.images(series)).code == "E_PACS_TRUNCATED"
        else:
            assert len(pacs.images(series)) == listed


@pytest.mark.parametrize("invalid", ["", "1.2/../3", "1.02.3", "x", "1" * 65])
def test_results_without_a_valid_uid_are_left_out(tmp_path: Path, invalid: str) -> None:
    def answer(request: Request) -> Answer:
        tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[request.path.split("/")[-1]]
        return as_json([attributes(**{tag: invalid}), attributes(**{tag: "1.2.3"})])

    with asking(answer, tmp_path) as (pacs, server):
        assert [(each.study_uid, each.series_uid) for each in pacs.find(StudyQuery())] == [("1.2.3", "1.2.3")]
        assert pacs.images(SERIES) == {"1.2.3"}
    assert all("//" not in request.path and ".." not in request.path for request in server.requests)


def test_no_content_means_no_results(tmp_path: Path) -> None:
    with asking(lambda request: (204, {}, b""), tmp_path) as (pacs, _):
        pacs.echo()
        assert pacs.find(StudyQuery()) == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (StudyQuery(), {"ModalitiesInStudy": "CT"}),
        (StudyQuery(from_date=date(2020, 3, 1)), {"ModalitiesInStudy": "CT", "StudyDate": "20200301-"}),
        (StudyQuery("MR", to_date=date(2021, 12, 31)), {"ModalitiesInStudy": "MR", "StudyDate": "-20211231"}),
        (StudyQuery("", date(2020, 3, 1), date(2020, 3, 2)), {"StudyDate": "20200301-20200302"}),
        (StudyQuery(patient_id="P 1&2"), {"ModalitiesInStudy": "CT", "PatientID": "P 1&2"}),
    ],
)
def test_filters_are_sent_as_query_parameters(tmp_path: Path, query: StudyQuery, expected: dict[str, str]) -> None:
    with asking(lambda request: as_json([]), tmp_path) as (pacs, server):
        pacs.find(query)
    asked = server.requests[0].query
    assert {key: value for key, value in asked.items() if key not in ("limit", "offset", "includefield")} == expected


def test_name_date_and_description_are_returned(tmp_path: Path) -> None:
    def answer(request: Request) -> Answer:
        if int(request.query["offset"]):
            return as_json([])
        if request.path.endswith("/studies"):
            named = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "CANARY^ONE"}]}}
            return as_json([{**attributes(t0020000D="1.1", t00080020="20210304"), **named}])
        unnamed = {"00100010": {"vr": "PN"}}
        return as_json([{**attributes(t0020000E="1.1.1", t0008103E="thin"), **unnamed}])

    with asking(answer, tmp_path) as (pacs, _):
        (found,) = pacs.find(StudyQuery())
    assert (found.patient_name, found.study_date, found.description) == ("CANARY^ONE", "20210304", "thin")


def test_no_more_studies_are_queried_than_needed(tmp_path: Path) -> None:
    with asking(lambda request: hospital(request, page=1000), tmp_path) as (pacs, server):
        found = pacs.find(StudyQuery(at_most=3))
    assert [each.study_uid for each in found] == ["1.0", "1.0", "1.1", "1.1"]
    assert len({request.path for request in server.requests if request.path.endswith("/series")}) == 2


def test_each_accession_number_is_queried_and_series_are_unique(tmp_path: Path) -> None:
    with asking(lambda request: hospital(request, page=1000), tmp_path) as (pacs, server):
        assert len(pacs.find(StudyQuery(accessions=("A1", "B&2")))) == 10
    asked = [request.query.get("AccessionNumber") for request in server.requests if request.path.endswith("/studies")]
    assert list(dict.fromkeys(asked)) == ["A1", "B&2"]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((401, "E_PACS_AUTH"), (403, "E_PACS_AUTH"), (404, "E_PACS_ANSWER"), (400, "E_PACS_ANSWER")),
        *((500, "E_PACS_ANSWER"), (503, "E_PACS_SILENT"), (504, "E_PACS_SILENT"), (429, "E_PACS_SILENT")),
    ],
)
def test_http_status_maps_to_its_code(tmp_path: Path, status: int, code: str) -> None:
    with asking(lambda request: (status, {}, b"CANARY 3141"), tmp_path) as (pacs, _):
        for call in (
            pacs.echo,
            lambda: pacs.find(StudyQuery(accessions=("CANARY",))),
            lambda: pacs.images(SERIES),
            lambda: list(pacs.fetch(SERIES, None)),
        ):
            assert refusal(call).code == code


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>", b"{", b"7", b"[7]", b'["x"]', b"null", b"\xff"),
        *(b'[{"0020000D": 7}]', b'[{"0020000D": {"Value": 7}}]', b"[" * 60_000),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_invalid_dicom_json_is_refused_or_empty(tmp_path: Path, body: bytes) -> None:
    with asking(lambda request: (200, {"Content-Type": "application/json"}, body), tmp_path) as (pacs, _):
        try:
            assert pacs.find(StudyQuery()) == []
        except Refusal as refused:
            assert refused.code == "E_PACS_ANSWER"


def test_wrong_port_and_wrong_name_are_told_apart(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    with DicomWebPacs(DicomWebTable(url=url), tmp_path) as pacs:
        assert refusal(pacs.echo).code == "E_PACS_REFUSED"
    with DicomWebPacs(DicomWebTable(url="http://pacs.invalid/dicom-web"), tmp_path) as pacs:
        assert refusal(pacs.echo).code == "E_PACS_NAME"


def test_pacs_that_stops_responding_is_reported_as_silent(tmp_path: Path) -> None:
    awake = threading.Event()

    def sleep(request: Request) -> Answer:
        awake.wait(300)
        return 204, {}, b""

    with asking(sleep, tmp_path, timeout_seconds=0.3) as (pacs, _):
        assert refusal(pacs.echo).code == "E_PACS_SILENT"
        awake.set()


def test_reused_connection_closed_by_the_server_is_retried(tmp_path: Path) -> None:
    """An intermediary may close a kept connection without notice, just when the next request is sent."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)

    def serve() -> None:
        for answers in (1, 1, 0):  # number of requests answered on each connection; the next request closes it
            client, _ = server.accept()
            with client:
                for _ in range(answers):
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")
                client.recv(65536)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with DicomWebPacs(DicomWebTable(url=f"http://127.0.0.1:{server.getsockname()[1]}"), tmp_path) as pacs:
        pacs.echo()
        pacs.echo()
        assert refusal(pacs.echo).code == "E_PACS_SILENT"  # after the second failure in a row it is reported
    thread.join()
    server.close()


def test_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    level = logging.getLogger("urllib3").level
    with asking(lambda request: hospital(request, page=2), tmp_path) as (pacs, _):
        pacs.find(StudyQuery(accessions=("CANARY",)))
        pacs.images(SERIES)
    with DicomWebPacs(DicomWebTable(url="http://127.0.0.1:9/dicom-web"), tmp_path) as gone:  # no server listens there
        for call in (lambda: gone.find(StudyQuery(accessions=("CANARY",))), lambda: list(gone.fetch(SERIES, None))):
            assert refusal(call).code == "E_PACS_REFUSED"
    assert caplog.text == ""
    assert logging.getLogger("urllib3").level == level


# --- authentication -------------------------------------------------------------------------------------------------


def test_password_or_token_is_sent(tmp_path: Path) -> None:
    for name, secret in (("password", "hé:llo"), ("token", "t0ken")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(secret + "\n", encoding="utf-8")
    with asking(lambda request: (204, {}, b""), tmp_path, user="nöde", password_file="password") as (pacs, server):
        pacs.echo()
    login = base64.b64encode("nöde:hé:llo".encode()).decode()
    assert server.requests[0].headers["Authorization"] == f"Basic {login}"
    with asking(lambda request: (204, {}, b""), tmp_path, token_file="token") as (pacs, server):
        pacs.echo()
    assert server.requests[0].headers["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("key", ["token_file", "ca_certificate"])
def test_missing_file_is_refused_at_once(tmp_path: Path, key: str) -> None:
    table = DicomWebTable.model_validate({"url": "https://127.0.0.1:1", key: "nowhere"})
    assert refusal(lambda: DicomWebPacs(table, tmp_path)).code == "E_PACS_FILE"


def test_only_the_declared_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda request: (204, {}, b"")).running() as gone:
        dead = gone.url
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, dead)
    monkeypatch.setenv("no_proxy", "")
    with asking(lambda request: (204, {}, b""), tmp_path) as (pacs, server):
        pacs.echo()
        assert server.requests[0].target.startswith("/dicom-web/studies")
        with Server(lambda request: (204, {}, b"")).running() as proxy:
            table = DicomWebTable(url=f"{server.url}/dicom-web", proxy=proxy.url)
            with DicomWebPacs(table, tmp_path) as through:
                through.echo()
            assert proxy.requests[0].target.startswith(f"{server.url}/dicom-web/studies")
            assert len(server.requests) == 1
        with DicomWebPacs(DicomWebTable(url=server.url, proxy=dead), tmp_path) as lost:
            assert refusal(lost.echo).code == "E_PACS_PROXY"


# --- retrieval ------------------------------------------------------------------------------------------------------


def test_whole_series_or_single_instances_are_requested(tmp_path: Path) -> None:
    with asking(lambda request: related(multipart(request.path.encode())), tmp_path) as (pacs, server):
        series = "/dicom-web/studies/1.2.3141/series/1.2.3141.1"
        assert list(pacs.fetch(SERIES, None)) == [series.encode()]
        wanted = {"1.9", "1.8"}
        assert list(pacs.fetch(SERIES, wanted)) == [f"{series}/instances/{each}".encode() for each in sorted(wanted)]
        assert list(pacs.fetch(SERIES, set())) == []
    accepted = {request.headers["Accept"] for request in server.requests}
    assert accepted == {'multipart/related; type="application/dicom"; transfer-syntax=*'}


@pytest.mark.parametrize("kind", ["application/dicom", "multipart/related", "text/html", ""])
def test_response_that_is_not_multipart_is_refused(tmp_path: Path, kind: str) -> None:
    with asking(lambda request: (200, {"Content-Type": kind}, b"x" * 1000), tmp_path) as (pacs, _):
        assert refusal(lambda: list(pacs.fetch(SERIES, None))).code == "E_PACS_ANSWER"


def test_incomplete_image_is_not_returned(tmp_path: Path) -> None:
    """The response has no length, so HTTP itself cannot detect that it is incomplete."""
    images = [bytes([number]) * 5000 for number in range(3)]
    whole = multipart(*images)
    for end in (len(whole) - 1, len(whole) - 2000, 6000, 100, 3, 0):
        with asking(lambda request, end=end: related(whole[:end]), tmp_path) as (pacs, _):  # type: ignore[misc]
            received = []

            def receive(pacs: DicomWebPacs = pacs, received: list[bytes] = received) -> None:
                received.extend(pacs.fetch(SERIES, None))

            assert refusal(receive).code == "E_PACS_SILENT"
            assert received == images[: len(received)]


def test_response_shorter_than_its_length_is_reported_as_silent(tmp_path: Path) -> None:
    def short(request: Request) -> Answer:
        status, headers, body = related(multipart(b"x" * 5000))
        return status, headers | {"Content-Length": str(len(body) + 10)}, body

    with asking(short, tmp_path) as (pacs, _):
        assert refusal(lambda: list(pacs.fetch(SERIES, None))).code == "E_PACS_SILENT"


BODIES = st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n--a-bound", b"\r\n\r\n", b"--", b"\r"]), max_size=5)


@given(
    bodies=BODIES, size=st.integers(1, 40), preamble=st.sampled_from([b"", b"\r\n", b"hello\r\n"]), cut=st.integers(0)
)
def test_multipart_bodies_are_complete(bodies: list[bytes], size: int, preamble: bytes, cut: int) -> None:
    message = preamble + multipart(*bodies)
    chunks = [message[start : start + size] for start in range(0, len(message), size)]
    assert list(split_multipart(chunks, BOUNDARY)) == bodies
    piece = message[: cut % (len(message) - 1)]
    received = []
    with pytest.raises(Refusal, match="E_PACS_SILENT"):
        for body in split_multipart([piece], BOUNDARY):
            received.append(body)
    assert received == bodies[: len(received)]
