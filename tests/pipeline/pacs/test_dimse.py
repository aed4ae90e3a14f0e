"""Tests of the DIMSE client against a synthetic PACS with correct or faulty behaviour. tests/e2e uses a real PACS."""

import gc
import logging
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom import Dataset, dcmread
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    LegacyConvertedEnhancedCTImageStorage,
)
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_FIND, C_GET
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    MRImageStorage,
    Verification,
)

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.pacs import dimse
from pipeline.pacs.association import FIND, GET, associate
from pipeline.pacs.dimse import DimsePacs
from pipeline.pacs.queries import RemoteSeries, StudyQuery
from pipeline.site.pacs_settings import DimseTable
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE, FakePacs, dataset, images

PENDING = 0xFF00
SERIES = RemoteSeries("CANARY-0042", "", "", "1.2.3", "1.2.3.4", "CT", "CHEST", None)


def table(port: int, **settings: Any) -> DimseTable:
    ours = {"host": "127.0.0.1", "port": port, "called_aet": PACS_TITLE, "calling_aet": OUR_TITLE}
    return DimseTable(**({"timeout_seconds": 60, "connect_seconds": 60} | ours | settings))


def client(pacs: FakePacs, **settings: Any) -> DimsePacs:
    """A client of the PACS. For C-MOVE, the PACS is told the port of the receiver."""
    pacs.receiver_port = pacs.receiver_port or free_port()
    return DimsePacs(table(pacs.port, **({"receiver_port": pacs.receiver_port} | settings)), Path())


def reading(contents: Iterator[bytes]) -> list[Dataset]:
    return sorted((dcmread(BytesIO(content)) for content in contents), key=lambda image: image.SOPInstanceUID)


def by_uid(sent: list[Dataset]) -> list[Dataset]:
    return sorted(sent, key=lambda image: image.SOPInstanceUID)


@contextmanager
def deaf_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that handles one connection with `answer`; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.close()
        thread.join(timeout=60)


# --- queries ---


def test_echo_checks_ae_titles_and_all_needed_services() -> None:
    with FakePacs().running() as pacs:
        for retrieve in ("c-get", "c-move"):
            client(pacs, retrieve=retrieve).echo()


@pytest.mark.parametrize(("retrieve", "service"), [("c-get", "C-GET"), ("c-move", "C-MOVE")])
def test_missing_service_is_named_in_the_refusal(retrieve: str, service: str) -> None:
    with FakePacs(offers=[Verification, FIND]).running() as pacs:
        asking = client(pacs, retrieve=retrieve)
        with pytest.raises(Refusal, match=f"E_PACS_SERVICE.*{service}"):
            asking.echo()
        with pytest.raises(Refusal, match=f"E_PACS_SERVICE.*{service}"):
            list(asking.fetch(SERIES, {"1.2"}))


def test_missing_c_get_role_for_ct_is_named_in_the_refusal() -> None:
    with FakePacs(images=images(1), sends_ct=False).running() as pacs, pytest.raises(Refusal, match="C-GET of CT"):
        list(client(pacs).fetch(SERIES, None))


@pytest.mark.parametrize(
    ("settings", "detail"),
    [({"calling_aet": "STRANGER"}, "our AE title, STRANGER"), ({"called_aet": "ANOTHER"}, "is not ANOTHER")],
)
def test_refused_ae_title_is_only_in_the_private_detail(settings: dict[str, str], detail: str) -> None:
    with FakePacs().running() as pacs, pytest.raises(Refusal, match="E_PACS_AUTH") as caught:
        client(pacs, **settings).find(StudyQuery())
    assert detail in caught.value.private
    assert detail not in str(caught.value)


def test_find_returns_the_series_of_matching_studies() -> None:
    study = dataset(
        StudyInstanceUID="1.2.1",
        StudyDate="20210304",
        PatientID="0042",
        PatientName="CANARY^ONE",
        IssuerOfPatientID="CLINIC",
        AccessionNumber="A1",
        ModalitiesInStudy=["CT", "SR"],
    )
    chest = dataset(
        SeriesInstanceUID="1.2.1.1",
        SeriesDescription="thin",
        Modality="CT",
        BodyPartExamined="CHEST",
        NumberOfSeriesRelatedInstances="300",
    )
    bare = dataset(SeriesInstanceUID="1.2.1.2")
    with FakePacs([(study, [chest, bare])]).running() as pacs:
        found = client(pacs).find(StudyQuery(from_date=date(2021, 3, 4), to_date=date(2021, 3, 4)))
    who, day = ("0042", "CLINIC", "A1", "1.2.1"), "20210304"
    assert found == [
        RemoteSeries(*who, "1.2.1.1", "CT", "CHEST", 300, "CANARY^ONE", day, "thin"),
        RemoteSeries(*who, "1.2.1.2", "", "", None, "CANARY^ONE", day),
    ]


def test_results_that_do_not_match_the_query_are_dropped() -> None:
    answers = {
        "right": {"StudyDate": "20210304", "AccessionNumber": "A1", "ModalitiesInStudy": "CT"},
        "silent": {"AccessionNumber": "A1"},
        "date": {"StudyDate": "20190101", "AccessionNumber": "A1", "ModalitiesInStudy": "CT"},
        "accession": {"StudyDate": "20210304", "AccessionNumber": "A2", "ModalitiesInStudy": "CT"},
        "modality": {"StudyDate": "20210304", "AccessionNumber": "A1", "ModalitiesInStudy": "MR"},
    }
    series = [dataset(SeriesInstanceUID="1.2.9", Modality="CT")]
    studies = [
        (dataset(StudyInstanceUID=f"1.2.{n}", PatientID=name, **attributes), series)
        for n, (name, attributes) in enumerate(answers.items(), start=1)
    ]

    def everything(event: Event) -> Iterator[tuple[int, Dataset | None]]:
        for study, of_study in studies:
            for each in of_study if event.identifier.QueryRetrieveLevel == "SERIES" else [study]:
                if event.identifier.QueryRetrieveLevel == "STUDY":
                    yield PENDING, each
                elif event.identifier.StudyInstanceUID == study.StudyInstanceUID:
                    own = dataset(SeriesInstanceUID=f"{study.StudyInstanceUID}.1", Modality="CT")
                    yield PENDING, own

    with FakePacs(find=everything).running() as pacs:
        found = client(pacs).find(StudyQuery("CT", date(2021, 1, 1), date(2021, 12, 31), ("A1",)))
    assert sorted(series.patient_id for series in found) == ["right", "silent"]


def test_results_without_valid_uid_or_of_another_study_are_dropped() -> None:
    good = dataset(StudyInstanceUID="1.2.1", StudyDate="20210304")
    series = [
        dataset(SeriesInstanceUID="1.2.1.1"),
        dataset(SeriesInstanceUID=""),
        dataset(SeriesInstanceUID="1.2.1.2", StudyInstanceUID="1.2.77"),
        dataset(Modality="CT"),
    ]
    with FakePacs([(good, series), (dataset(StudyDate="20210304"), series)]).running() as pacs:
        assert [each.series_uid for each in client(pacs).find(StudyQuery())] == ["1.2.1.1"]


def test_unreadable_values_are_empty_and_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    study, broken = dataset(StudyInstanceUID="1.2.1"), dataset(SeriesInstanceUID="1.2.1.1")
    study.add_new("StudyDate", "LO", "CANARY-date")  # the client does not see these VRs (implicit VR)
    broken.add_new("NumberOfSeriesRelatedInstances", "LO", "CANARY many")
    pacs = FakePacs([(study, [broken])], query_syntax=ImplicitVRLittleEndian)
    with warnings.catch_warnings(record=True) as raised, pacs.running():
        warnings.simplefilter("always")
        (found,) = client(pacs).find(StudyQuery())
    assert found.images is None
    assert not [warning for warning in raised if "CANARY" in str(warning.message)]
    assert "CANARY" not in "".join(capfd.readouterr())


def test_request_thread_does_not_take_responses() -> None:
    with (
        FakePacs().running() as pacs,
        associate(table(pacs.port), None, (FIND,)) as association,
    ):
        answer = C_FIND()
        association.dimse.msg_queue.put((1, answer))
        time.sleep(0.2)
        assert association.dimse.get_msg(block=True) == (1, answer)


@pytest.mark.slow
def test_truncated_results_are_queried_again_by_shorter_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "TRUNCATED_AT", 10)
    first = date(2021, 1, 1)
    studies = [
        (
            dataset(StudyInstanceUID=f"1.2.{n}", StudyDate=f"{first + timedelta(n % 40):%Y%m%d}"),
            [dataset(SeriesInstanceUID=f"1.2.{n}.1")],
        )
        for n in range(1, 101)
    ]
    with FakePacs(studies).running() as pacs:

        def ten(event: Event) -> Iterator[tuple[int, Dataset | None]]:
            yield from list(pacs.usual_find(event))[:10]

        pacs.find = ten
        for query in (StudyQuery(), StudyQuery(from_date=first), StudyQuery(to_date=first + timedelta(60))):
            assert len(client(pacs).find(query)) == 100


def test_pacs_that_ignores_days_is_not_asked_for_each_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "TRUNCATED_AT", 10)
    studies = [
        (dataset(StudyInstanceUID=f"1.2.{n}", StudyDate=f"202101{n:02}"), [dataset(SeriesInstanceUID=f"1.2.{n}.1")])
        for n in range(1, 13)
    ]
    asked = []
    with FakePacs(studies).running() as pacs:

        def everything(event: Event) -> Iterator[tuple[int, Dataset | None]]:
            asked.append(event.identifier.QueryRetrieveLevel)
            if asked[-1] == "STUDY":
                event.identifier.StudyDate = ""
                yield from ((0xFF00, study) for study, _ in studies)
            else:
                yield from pacs.usual_find(event)

        pacs.find = everything
        found = client(pacs).find(StudyQuery(from_date=date(2021, 1, 1), to_date=date(2021, 1, 8)))
        assert len(found) == 8 and asked.count("STUDY") == 1
        asked.clear()
        assert len(client(pacs).find(StudyQuery())) == 12
        assert asked.count("STUDY") < 40  # to the days that hold all studies; not 20000


class BusyDay:
    """A PACS with so many studies on one day, a minute apart, that returns only the first `most` of a search.

    `status`: sent instead of them if some are left out; None: the usual one. `ignores_times`: of parts of the day.
    """

    def __init__(self, pacs: FakePacs, count: int, most: int, *, status: int | None, ignores_times: bool) -> None:
        pacs.studies = [
            (
                dataset(StudyInstanceUID=f"1.2.{n}", StudyDate="20210101", StudyTime=f"{n // 60:02}{n % 60:02}"),
                [dataset(SeriesInstanceUID=f"1.2.{n}.1")],
            )
            for n in range(1, count + 1)
        ]
        pacs.find = self.answer
        self._pacs, self._most, self._status, self._ignores_times = pacs, most, status, ignores_times
        self.times: list[str] = []

    def answer(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        is_study_level = event.identifier.QueryRetrieveLevel == "STUDY"
        if is_study_level:
            self.times.append(event.identifier.get("StudyTime", ""))
        if self._ignores_times:
            event.identifier.StudyTime = ""
        found = list(self._pacs.usual_find(event))
        if is_study_level and len(found) > self._most and self._status is not None:
            yield self._status, None
        else:
            yield from found[: self._most]


DAY = StudyQuery(from_date=date(2021, 1, 1), to_date=date(2021, 1, 1))


@pytest.mark.parametrize(("most", "status"), [(100, None), (110, None), (7, 0xA700)])
def test_one_day_is_divided_by_study_time(most: int, status: int | None) -> None:
    with FakePacs().running() as pacs:
        day = BusyDay(pacs, 120, most, status=status, ignores_times=False)
        assert len(client(pacs).find(DAY)) == 120
    assert len(day.times) > 1 and all("-" in time for time in day.times[1:])


@pytest.mark.parametrize(
    ("count", "most", "code"), [(120, 100, "E_PACS_TRUNCATED"), (150, 150, "E_PACS_TRUNCATED"), (120, 200, "")]
)
def test_round_number_of_results_is_refused_if_a_day_cannot_be_divided(count: int, most: int, code: str) -> None:
    with FakePacs().running() as pacs:
        BusyDay(pacs, count, most, status=None, ignores_times=True)
        if not code:
            assert len(client(pacs).find(DAY)) == count
            return
        with pytest.raises(Refusal, match=code) as caught:
            client(pacs).find(DAY)
        assert f"first {most} results" in caught.value.says


@pytest.mark.parametrize(("count", "code"), [(101, ""), (150, "E_PACS_TRUNCATED")])
def test_pacs_that_rejects_study_time_is_refused_only_if_results_are_surely_missing(count: int, code: str) -> None:
    with FakePacs().running() as pacs:
        day = BusyDay(pacs, count, 1000, status=None, ignores_times=False)

        def reject(event: Event) -> Iterator[tuple[int, Dataset | None]]:
            if event.identifier.get("StudyTime"):
                yield 0xA900, None
            else:
                yield from day.answer(event)

        pacs.find = reject
        if not code:
            assert len(client(pacs).find(DAY)) == count
            return
        with pytest.raises(Refusal, match=code):
            client(pacs).find(DAY)


def test_images_are_the_ct_images_of_the_series() -> None:
    chest, report = images(2)
    report.SOPClassUID = MRImageStorage
    with FakePacs(images=[chest, report]).running() as pacs:
        assert client(pacs).images(SERIES) == {chest.SOPInstanceUID}
    assert (pacs.asked[0].StudyInstanceUID, pacs.asked[0].SeriesInstanceUID) == ("1.2.3", "1.2.3.4")


@pytest.mark.parametrize(("listed", "in_series", "is_refused"), [(100, 120, True), (100, 100, False), (9, 120, False)])
def test_list_of_images_that_the_pacs_cuts_is_refused(listed: int, in_series: int, is_refused: bool) -> None:
    with FakePacs(images=images(listed)).running() as pacs:
        series = replace(SERIES, images=in_series)
        if is_refused:
            with pytest.raises(Refusal, match="E_PACS_TRUNCATED"):
                client(pacs).images(series)
        else:
            assert len(client(pacs).images(series)) == listed


def test_number_of_images_is_that_of_the_series() -> None:
    described = [
        dataset(SeriesInstanceUID="1.2.3.9", NumberOfSeriesRelatedInstances="5"),
        dataset(SeriesInstanceUID=SERIES.series_uid, NumberOfSeriesRelatedInstances="7"),
        dataset(SeriesInstanceUID="1.2.3.5"),
    ]
    with FakePacs([(dataset(StudyInstanceUID=SERIES.study_uid), described)]).running() as pacs:
        assert client(pacs).image_count(SERIES.study_uid, SERIES.series_uid) == 7
        assert client(pacs).image_count(SERIES.study_uid, "1.2.3.5") is None
        assert client(pacs).image_count(SERIES.study_uid, "1.2.3.6") is None


@pytest.mark.parametrize(
    ("status", "code"),
    [(0xA700, "E_PACS_SILENT"), (0x0124, "E_PACS_AUTH"), (0xC001, "E_PACS_ANSWER"), (0xFE00, "E_PACS_ANSWER")],
)
def test_failed_query_is_refused_with_its_status(status: int, code: str) -> None:
    def fail(event: Event) -> Iterator[tuple[int, Dataset | None]]:
        yield status, None

    with FakePacs(find=fail).running() as pacs, pytest.raises(Refusal, match=code) as caught:
        client(pacs).find(StudyQuery())
    assert f"{status:04X}H" in caught.value.private


def test_pacs_that_aborts_is_reported_as_silent() -> None:
    def abort(event: Event) -> Iterator[tuple[int, Dataset | None]]:
        yield PENDING, dataset(StudyInstanceUID="1.2.1")
        event.assoc.abort()

    with FakePacs(find=abort).running() as pacs, pytest.raises(Refusal, match="E_PACS_SILENT"):
        client(pacs).find(StudyQuery())


def test_endless_results_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "MAX_ANSWERS", 50)

    def babble(event: Event) -> Iterator[tuple[int, Dataset | None]]:
        for number in range(100_000):
            if not event.assoc.is_established:
                return
            yield PENDING, dataset(StudyInstanceUID=f"1.2.{number}")

    with FakePacs(find=babble).running() as pacs, pytest.raises(Refusal, match="E_PACS_ANSWER"):
        client(pacs).find(StudyQuery())


def _refuse(port: int, code: str, *, seconds: float = 60, host: str = "127.0.0.1") -> None:
    """`seconds`: the client's limits; short where the PACS is silent."""
    with pytest.raises(Refusal, match=code):
        DimsePacs(table(port, host=host, connect_seconds=seconds, timeout_seconds=seconds), Path()).find(StudyQuery())


def test_wrong_port_name_address_and_title_are_told_apart() -> None:
    _refuse(free_port(), "E_PACS_REFUSED")
    _refuse(104, "E_PACS_NAME", host="pacs.invalid")
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:  # as a link on which packets are lost
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            _refuse(port, "E_PACS_SILENT", seconds=1)
    with deaf_server(lambda connection: connection.recv(4096)) as port:  # it closes, as some do for an unknown title
        _refuse(port, "E_PACS_CLOSED")


@pytest.mark.slow
def test_server_that_sends_nothing_is_reported_as_silent() -> None:
    refused = threading.Event()
    with deaf_server(lambda connection: refused.wait(300)) as port:
        _refuse(port, "E_PACS_SILENT", seconds=1)
        refused.set()


@pytest.mark.slow
def test_server_that_stops_inside_a_pdu_is_reported_as_silent() -> None:
    refused = threading.Event()

    def half(connection: socket.socket) -> None:
        connection.sendall(struct.pack(">BBL", 2, 0, 200) + b"\0\1")
        refused.wait(300)

    with deaf_server(half) as port:
        _refuse(port, "E_PACS_SILENT", seconds=1)
        refused.set()


def test_server_with_another_protocol_is_reported() -> None:
    with deaf_server(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        _refuse(port, "E_PACS_CLOSED")


# --- retrieval ---


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_whole_series_is_fetched_in_one_request(retrieve: str) -> None:
    sent = images(12)
    with FakePacs(images=sent).running() as pacs:
        assert reading(client(pacs, retrieve=retrieve).fetch(SERIES, None)) == by_uid(sent)
    assert pacs.asked[-1].QueryRetrieveLevel == "SERIES"
    assert (pacs.asked[-1].StudyInstanceUID, pacs.asked[-1].SeriesInstanceUID) == ("1.2.3", "1.2.3.4")


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_only_wanted_images_are_fetched_in_small_requests(retrieve: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "IMAGES_A_REQUEST", 4)
    held = images(12)
    wanted = held[1:10]
    with FakePacs(images=held).running() as pacs:
        arrived = reading(client(pacs, retrieve=retrieve).fetch(SERIES, {each.SOPInstanceUID for each in wanted}))
    assert arrived == by_uid(wanted)
    assert [request.QueryRetrieveLevel for request in pacs.asked] == ["IMAGE"] * 3


def test_series_with_all_images_wanted_is_requested_as_a_whole() -> None:
    sent = images(3)
    with FakePacs(images=sent).running() as pacs:
        series = replace(SERIES, images=3)
        assert reading(client(pacs).fetch(series, {image.SOPInstanceUID for image in sent})) == by_uid(sent)
    assert [request.QueryRetrieveLevel for request in pacs.asked] == ["SERIES"]


def test_no_wanted_images_send_no_request() -> None:
    with FakePacs(images=images(2)).running() as pacs:
        assert list(client(pacs).fetch(SERIES, set())) == []
    assert pacs.asked == []


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_pixels_stay_compressed_as_stored(retrieve: str) -> None:
    sent = images(2, syntax=JPEGLSLossless, size=32)
    with FakePacs(images=sent).running() as pacs:
        arrived = reading(client(pacs, retrieve=retrieve).fetch(SERIES, None))
    assert arrived == by_uid(sent)
    assert {image.file_meta.TransferSyntaxUID for image in arrived} == {JPEGLSLossless}


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_pacs_waits_for_a_slow_reader(retrieve: str) -> None:
    sent = images(40)
    handed_out = []
    with FakePacs(images=sent).running() as pacs:

        def counting(event: Event) -> Iterator[Any]:
            for answer in pacs.usual_move(event) if retrieve == "c-move" else pacs.usual_get(event):
                handed_out.append(answer)
                yield answer

        pacs.get = pacs.move = counting
        contents = client(pacs, retrieve=retrieve).fetch(SERIES, None)
        next(contents)
        time.sleep(0.7)
        assert len(handed_out) < 12
        assert len(list(contents)) == 39


@pytest.mark.slow
@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_closing_early_ends_the_transfer_at_once(retrieve: str) -> None:
    before = threading.enumerate()
    with FakePacs(images=images(40)).running() as pacs:
        asking = client(pacs, retrieve=retrieve)
        contents = asking.fetch(SERIES, None)
        next(contents)
        start = time.monotonic()
        contents.close()
        assert time.monotonic() - start < 30  # it does not wait for a timeout
        assert len(list(asking.fetch(SERIES, None))) == 40  # its port is free again
    gc.collect()
    assert not [thread for thread in threading.enumerate() if not thread.daemon and thread not in before]


def test_interrupted_transfer_returns_received_images_and_can_continue() -> None:
    sent = images(10)
    with FakePacs(images=sent).running() as pacs:

        def die_after_four(event: Event) -> Iterator[Any]:
            for number, answer in enumerate(pacs.usual_get(event)):
                if number == 5:
                    event.assoc.abort()
                    return
                yield answer

        pacs.get = die_after_four
        asking = client(pacs)
        arrived: list[Dataset] = []
        with pytest.raises(Refusal, match="E_PACS_SILENT"):
            for content in asking.fetch(SERIES, None):
                arrived.append(dcmread(BytesIO(content)))
        assert len(arrived) == 4
        pacs.get = None
        missing = {image.SOPInstanceUID for image in sent} - {image.SOPInstanceUID for image in arrived}
        arrived += reading(asking.fetch(SERIES, missing))
    assert by_uid(arrived) == by_uid(sent)


@pytest.mark.slow
@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_pacs_that_stops_during_the_transfer_times_out(retrieve: str) -> None:
    refused = threading.Event()
    with FakePacs(images=images(4)).running() as pacs:

        def stall(event: Event) -> Iterator[Any]:
            for number, answer in enumerate(pacs.usual_move(event) if retrieve == "c-move" else pacs.usual_get(event)):
                if number == 4:
                    refused.wait(300)
                yield answer

        pacs.get = pacs.move = stall
        with pytest.raises(Refusal, match="E_PACS_SILENT"):
            list(client(pacs, retrieve=retrieve, timeout_seconds=1).fetch(SERIES, None))
        refused.set()


@pytest.mark.slow
def test_arriving_images_prevent_a_timeout_without_pending_responses() -> None:
    with FakePacs(images=images(14)).running() as pacs:

        def wordless(event: Event) -> Iterator[Any]:
            provider = event.assoc.dimse
            send = provider.send_msg
            provider.send_msg = lambda message, context: None if message.Status == PENDING else send(message, context)
            answers = pacs.usual_move(event)
            yield from (next(answers), next(answers))  # the address and the number of images
            for image in answers:
                time.sleep(1)  # together more than the timeout, and each far less, also on a busy machine
                yield image

        pacs.move = wordless
        assert len(list(client(pacs, retrieve="c-move", timeout_seconds=12).fetch(SERIES, None))) == 14


@pytest.mark.slow
def test_pending_responses_prevent_a_timeout() -> None:
    with FakePacs(images=images(2)).running() as pacs:

        def from_tape(event: Event) -> Iterator[Any]:
            for _ in range(14):
                time.sleep(1)
                word = C_GET()
                word.MessageIDBeingRespondedTo, word.AffectedSOPClassUID = event.request.MessageID, GET
                word.Status = PENDING
                event.assoc.dimse.send_msg(word, event.context.context_id)
            yield from pacs.usual_get(event)

        pacs.get = from_tape
        assert len(list(client(pacs, timeout_seconds=12).fetch(SERIES, None))) == 2


def test_images_sent_after_the_final_response_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "LATE_SECONDS", 60)
    sent = images(3)
    with FakePacs(images=sent).running() as pacs:

        def deliver() -> None:
            association = pacs.entity.associate("127.0.0.1", pacs.receiver_port, ae_title=OUR_TITLE)
            for image in sent:
                association.send_c_store(image)
            association.release()

        def at_once(event: Event) -> Iterator[Any]:
            threading.Timer(0.5, deliver).start()
            yield "127.0.0.1", pacs.receiver_port
            yield 0

        pacs.move = at_once
        assert reading(client(pacs, retrieve="c-move", timeout_seconds=120).fetch(SERIES, None)) == by_uid(sent)


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_multi_frame_ct_is_listed_and_fetched(retrieve: str) -> None:
    single, enhanced, legacy = images(3)
    enhanced.SOPClassUID, legacy.SOPClassUID = EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage
    with FakePacs(images=[single, enhanced, legacy]).running() as pacs:
        asking = client(pacs, retrieve=retrieve)
        assert len(asking.images(SERIES)) == 3
        assert reading(asking.fetch(SERIES, None)) == by_uid([single, enhanced, legacy])


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_series_without_ct_images_returns_none(retrieve: str) -> None:
    (report,) = images(1)
    report.SOPClassUID = MRImageStorage
    with FakePacs(images=[report]).running() as pacs:
        assert list(client(pacs, retrieve=retrieve).fetch(SERIES, None)) == []


@pytest.mark.parametrize("retrieve", ["c-get", "c-move"])
def test_image_that_the_pacs_cannot_send_is_skipped(retrieve: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "LATE_SECONDS", 60)
    good, bad = images(2)
    with FakePacs(images=[good, bad]).running() as pacs:

        def one_of_them(event: Event) -> Iterator[Any]:
            if retrieve == "c-move":
                yield "127.0.0.1", pacs.receiver_port
            yield 2
            yield PENDING, good
            report = dataset(SOPInstanceUID="1.2.9", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
            report.file_meta = good.file_meta
            yield PENDING, report

        pacs.get = pacs.move = one_of_them
        start = time.monotonic()
        assert reading(client(pacs, retrieve=retrieve, timeout_seconds=120).fetch(SERIES, None)) == [good]
        assert time.monotonic() - start < 30  # the client does not wait for failed images


@pytest.mark.slow
def test_success_without_images_tells_what_the_administrator_needs() -> None:
    with FakePacs(images=images(2), receiver_port=free_port()).running() as pacs:

        def nothing(event: Event) -> Iterator[Any]:
            yield "127.0.0.1", elsewhere
            yield 0

        listener = AE(ae_title="ELSEWHERE")
        listener.add_supported_context(Verification)
        for each in (CTImageStorage, MRImageStorage):
            listener.add_supported_context(each)
        server = listener.start_server(("127.0.0.1", 0), block=False)
        elsewhere = server.server_address[1]
        pacs.move = nothing
        with pytest.raises(Refusal, match="E_PACS_NO_DELIVERY") as caught:
            list(client(pacs, retrieve="c-move", timeout_seconds=2).fetch(SERIES, None))
        listener.shutdown()
    assert caught.value.private.startswith(f"AE title {OUR_TITLE}, host 127.0.0.1, port {pacs.receiver_port};")
    assert str(pacs.receiver_port) not in str(caught.value)


def test_pacs_that_cannot_reach_us_tells_what_the_administrator_needs() -> None:
    with FakePacs(images=images(2), receiver_port=free_port()).running() as pacs:
        asking = client(pacs, retrieve="c-move", receiver_port=free_port())
        with pytest.raises(Refusal, match="E_PACS_NO_DELIVERY"):
            list(asking.fetch(SERIES, None))


def test_failed_image_after_received_ones_is_not_a_delivery_error() -> None:
    sent = images(3)
    with FakePacs(images=sent).running() as pacs:
        asking = client(pacs, retrieve="c-move", timeout_seconds=1)
        assert len(list(asking.fetch(SERIES, None))) == 3
        pacs.images = []
        assert list(asking.fetch(SERIES, {sent[0].SOPInstanceUID})) == []


def test_receiver_port_in_use_is_refused_before_any_request() -> None:
    with FakePacs(images=images(1)).running() as pacs:
        asking = client(pacs, retrieve="c-move")
        with socket.create_server(("127.0.0.1", pacs.receiver_port)):
            for ask in (asking.echo, lambda: list(asking.fetch(SERIES, {"1.2"}))):
                with pytest.raises(Refusal, match="E_PACS_RECEIVER"):
                    ask()
    assert pacs.asked == []


def test_no_transferred_data_is_logged_or_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    study = dataset(StudyInstanceUID="1.2.3", PatientID="CANARY-0042", AccessionNumber="CANARY-1")
    with (
        caplog.at_level(logging.DEBUG),
        FakePacs([(study, [dataset(SeriesInstanceUID="1.2.3.4")])], images(3)).running() as pacs,
    ):
        for retrieve in ("c-get", "c-move"):
            asking = client(pacs, retrieve=retrieve)
            (found,) = asking.find(StudyQuery(accessions=("CANARY-1",)))
            assert len(list(asking.fetch(found, None))) == 3
    assert not [record for record in caplog.records if record.name.startswith("pynetdicom")]
    assert "".join(capfd.readouterr()) == ""


# --- TLS ---


def _server_context(authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.path)
    context.load_cert_chain(*authority.sign("pacs"))
    return context


def test_tls_certificate_of_the_pacs_is_verified(tmp_path: Path) -> None:
    authority, other = Authority.make(tmp_path), Authority.make(tmp_path, "other")
    sent = images(3)
    with FakePacs(images=sent, tls=_server_context(authority)).running() as pacs:
        assert reading(client(pacs, ca_certificate=authority.path).fetch(SERIES, None)) == by_uid(sent)
        with pytest.raises(Refusal, match="E_PACS_UNTRUSTED"):
            client(pacs, ca_certificate=other.path).echo()
        with pytest.raises(Refusal, match="E_PACS_UNTRUSTED"):  # the certificate is for 127.0.0.1
            client(pacs, ca_certificate=authority.path, host="localhost").echo()


def test_client_certificate_is_sent_if_the_pacs_requires_it(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    context = _server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, key = authority.sign("node")
    with FakePacs(tls=context).running() as pacs:
        client(pacs, ca_certificate=authority.path, certificate=certificate, key=key).echo()
        with pytest.raises(Refusal, match="E_PACS_UNTRUSTED"):
            client(pacs, ca_certificate=authority.path).echo()


def test_pacs_without_tls_is_refused_if_tls_is_configured(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    with FakePacs().running() as pacs, pytest.raises(Refusal, match=r"E_PACS_(UNTRUSTED|SILENT)"):
        client(pacs, ca_certificate=authority.path).echo()


@pytest.mark.parametrize("fault", ["missing", "no certificate", "key of another", "open to others", "locked"])
def test_unusable_certificate_or_key_is_refused(tmp_path: Path, fault: str) -> None:
    authority = Authority.make(tmp_path)
    certificate, key = authority.sign("node", password=b"secret" if fault == "locked" else None)
    if fault == "missing":
        key.unlink()
    if fault == "no certificate":
        authority.path.write_text("nothing")
    if fault == "key of another":
        key = authority.sign("other")[1]
    if fault == "open to others":
        key.chmod(0o644)
    with pytest.raises(Refusal, match="E_PACS_FILE"):
        DimsePacs(table(104, ca_certificate=authority.path, certificate=certificate, key=key), Path())


def test_relative_paths_are_resolved_against_the_folder(tmp_path: Path) -> None:
    Authority.make(tmp_path)
    DimsePacs(table(104, ca_certificate=Path("ca.crt")), tmp_path)


def test_c_move_over_tls_needs_a_receiver_certificate() -> None:
    with pytest.raises(ValidationError, match="c-move"):
        table(104, retrieve="c-move", ca_certificate=Path("ca.crt"))
