"""Tests of pulls from a PACS in memory: resume, growth, timeouts, merged patients, limits and damage."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from models.refusal import Reason, Refusal
from pipeline.imaging.discovery import find_series
from pipeline.pacs import reasons
from pipeline.pacs.pull import PullReport, delete_series, pull, study_query
from pipeline.pacs.queries import RemoteSeries, StudyQuery
from pipeline.site.folder import Site, init_site
from pipeline.site.withdrawn import Withdrawn
from tests.helpers.dicom_files import ct_slice, save

SITE = """
[site]
name = "ward"
issuer = "{issuer}"
[pacs]
protocol = "dicomweb"
[pacs.dicomweb]
url = "http://nowhere.invalid"
[pacs.limits]
retry_seconds = 0.01
keep_free_gb = 0
{limits}
[pacs.filters]
{filters}
[labels]
file = "labels.csv"
"""


class MemoryPacs:
    """A PACS that holds synthetic series in memory, records what it sends, and fails on request."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch / "scratch.dcm"
        self.held: dict[str, tuple[RemoteSeries, dict[str, bytes]]] = {}  # by series UID
        self.sent: list[str] = []
        self.lists_asked = 0
        self.breaks_after: list[int] = []  # images before the PACS stops responding, for each coming fetch
        self.silent_finds = 0
        self.is_gone = False
        self.dies_of_a_break = False
        self.fails: dict[str, Reason] = {}  # by series UID
        self.withholds: set[str] = set()  # SOP instance UIDs

    def add(self, number: int, *, slices: int = 4, first: int = 0, **remote: Any) -> str:
        """Add a series of patient P<number>, or more images of it; return its UID."""
        uid = f"1.{number}.1"
        known = RemoteSeries(f"P{number}", "", f"A{number}", f"1.{number}", uid, "CT", "CHEST", 0)
        series, images = self.held.get(uid, (replace(known, **remote), {}))
        for index in range(first, first + slices):
            images[f"{uid}.{index}"] = self.image(number, index)
        self.held[uid] = replace(series, images=len(images)), images
        return uid

    def image(self, number: int, index: int, **attributes: Any) -> bytes:
        ds = ct_slice(np.full((8, 8), number * 100 + index), position_mm=(0, 0, index))
        ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = f"P{number}", f"1.{number}", f"1.{number}.1"
        ds.SOPInstanceUID = f"1.{number}.1.{index}"
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        save(ds, self._scratch)
        return self._scratch.read_bytes()

    def change(self, uid: str, **remote: Any) -> None:
        """Change the attributes that the PACS reports for a series."""
        series, images = self.held[uid]
        self.held[uid] = replace(series, **remote), images

    def _check(self) -> None:
        if self.is_gone:
            raise Refusal(reasons.PACS_SILENT)

    def echo(self) -> None:
        self._check()

    def find(self, query: StudyQuery) -> list[RemoteSeries]:
        self._check()
        if self.silent_finds:
            self.silent_finds -= 1
            raise Refusal(reasons.PACS_SILENT)
        return [series for series, _ in self.held.values()]

    def images(self, series: RemoteSeries) -> set[str]:
        self._check()
        self.lists_asked += 1
        return set(self.held[series.series_uid][1])

    def fetch(self, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        self._check()
        if series.series_uid in self.fails:
            raise Refusal(self.fails[series.series_uid], private="what the PACS said")
        left = self.breaks_after.pop(0) if self.breaks_after else -1
        for uid, content in self.held[series.series_uid][1].items():
            if (wanted is None or uid in wanted) and uid not in self.withholds:
                if left == 0:
                    self.is_gone = self.dies_of_a_break
                    raise Refusal(reasons.PACS_SILENT)
                left -= 1
                self.sent.append(uid)
                yield content


@pytest.fixture
def pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryPacs:
    memory = MemoryPacs(tmp_path)

    @contextmanager
    def opened(site: Site) -> Iterator[MemoryPacs]:
        yield memory

    monkeypatch.setattr("pipeline.pacs.pull.open_pacs", opened)
    return memory


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Site]:
    def site(*, filters: str = "", limits: str = "", issuer: str = "") -> Site:
        shutil.rmtree(tmp_path / "site", ignore_errors=True)
        return init_site(tmp_path / "site", SITE.format(filters=filters, limits=limits, issuer=issuer))

    return site


def run(site: Site) -> PullReport:
    seen: list[tuple[int, int]] = []
    report = pull(site, lambda done, total: seen.append((done, total)))
    assert seen == [(done, report.series) for done in range(report.series + 1)]
    assert report.series == report.fetched_now + report.already + report.failed
    return report


def codes(report: PullReport) -> list[str]:
    return sorted(finding.reason.code for finding in report.findings)


def stored(site: Site) -> dict[str, int]:
    """Pseudonym to the number of slices that the reader finds."""
    series, findings = find_series(site.ct_folder)
    assert findings == []
    return {each.patient_id: len(each.files) for each in series}


def test_each_image_is_fetched_once(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    for number in (1, 2, 3):
        pacs.add(number, slices=2 + number)
    first = run(site)
    assert (first.studies, first.series, first.fetched_now, first.images_now) == (3, 3, 3, 12)
    assert first.megabytes == pytest.approx(sum(len(f) for _, i in pacs.held.values() for f in i.values()) / 1e6)
    assert stored(site) == {site.pseudonym(f"P{number}"): 2 + number for number in (1, 2, 3)}
    assert pacs.lists_asked == 0  # the PACS had reported the number of images
    second = run(site)
    assert (second.fetched_now, second.already, second.images_now, second.megabytes) == (0, 3, 0, 0)
    assert len(pacs.sent) == 12
    assert first.to_json() | {"seconds": 0, "megabytes": 0} == {
        **{"studies": 3, "series": 3, "fetched_now": 3, "already": 0, "failed": 0, "images_now": 12},
        **{"other_modalities": {}, "other_body_parts": 0, "findings": {}, "megabytes": 0, "seconds": 0},
    }


def test_images_are_stored_where_the_site_reads_them(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    pacs.add(1)
    pacs.breaks_after = [2] * 20
    run(site)
    everything = {path.relative_to(site.folder).parts[0] for path in site.folder.rglob("*.dcm")}
    assert everything == {"pacs"}
    assert not any(path.suffix != ".dcm" for path in site.ct_folder.rglob("*") if path.is_file())


def test_interrupted_pull_is_resumed(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(limits="retries = 0")
    pacs.add(1)
    pacs.add(2, slices=6)
    pacs.breaks_after = [4, 3]
    pacs.dies_of_a_break = True
    with pytest.raises(Refusal, match="E_PACS_SILENT"):
        run(site)
    assert stored(site) == {site.pseudonym("P1"): 4}  # an incomplete series is not shown to the reader
    pacs.is_gone = False
    report = run(site)
    assert (report.already, report.fetched_now, report.images_now) == (1, 1, 3)
    assert len(pacs.sent) == len(set(pacs.sent)) == 10
    assert stored(site) == {site.pseudonym("P1"): 4, site.pseudonym("P2"): 6}


def test_pull_waits_for_a_restarting_pacs(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(limits="retries = 2")
    pacs.add(1, slices=9)
    pacs.silent_finds = 2
    pacs.breaks_after = [1, 0, 1, 0, 1, 0, 2]  # retries are counted anew after each image
    report = run(site)
    assert (report.fetched_now, report.images_now, codes(report)) == (1, 9, [])
    assert len(pacs.sent) == len(set(pacs.sent)) == 9


def test_pull_ends_after_the_last_retry(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(limits="retries = 2")
    pacs.add(1)
    pacs.silent_finds = 3
    with pytest.raises(Refusal, match="E_PACS_SILENT"):
        run(site)
    assert pacs.silent_finds == 0


def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how long a pull would wait instead of waiting. Threads left over from other tests sleep as before."""
    waits: list[float] = []
    monkeypatch.setattr("pipeline.pacs.pull.time", SimpleNamespace(monotonic=time.monotonic, sleep=waits.append))
    return waits


def test_pull_does_not_wait_if_the_pacs_is_down_at_the_start(
    pacs: MemoryPacs, make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = waited(monkeypatch)
    pacs.is_gone = True
    with pytest.raises(Refusal, match="E_PACS_SILENT"):
        run(make())
    assert waits == []


def test_wait_doubles_after_each_retry(
    pacs: MemoryPacs, make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = waited(monkeypatch)
    pacs.add(1)
    pacs.silent_finds = 4
    run(make())
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.08])


def test_series_without_reply_does_not_block_other_series(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(limits="retries = 1")
    pacs.fails[pacs.add(1)] = reasons.PACS_SILENT
    pacs.fails[pacs.add(2)] = reasons.PACS_ANSWER
    pacs.add(3)
    report = run(site)
    assert (report.failed, report.fetched_now) == (2, 1)
    assert codes(report) == ["E_PACS_ANSWER", "E_PACS_SILENT"]
    assert {finding.patient_id for finding in report.findings} == {site.pseudonym("P1"), site.pseudonym("P2")}
    pacs.fails.clear()
    assert run(site).fetched_now == 2


@pytest.mark.parametrize("reason", [reasons.PACS_AUTH, reasons.PACS_UNTRUSTED, reasons.PACS_PROXY])
def test_error_that_affects_all_series_ends_the_pull(
    pacs: MemoryPacs, make: Callable[..., Site], reason: Reason
) -> None:
    pacs.fails[pacs.add(1)] = reason
    pacs.add(2)
    with pytest.raises(Refusal, match=reason.code):
        run(make())
    assert pacs.sent == []


def test_new_images_of_a_series_are_fetched(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(limits="retries = 0")
    pacs.add(1, slices=4)
    run(site)
    pacs.add(1, slices=3, first=4)
    pacs.breaks_after = [1]
    report = run(site)
    assert codes(report) == ["E_PACS_SILENT"]
    assert stored(site) == {site.pseudonym("P1"): 4}  # the old images stay until the series is complete again
    assert run(site).images_now == 2
    assert stored(site) == {site.pseudonym("P1"): 7}
    assert len(pacs.sent) == len(set(pacs.sent)) == 7
    assert run(site).already == 1


def test_images_deleted_in_the_pacs_are_kept(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    pacs.add(1)
    uid = pacs.add(2)
    run(site)
    del pacs.held["1.1.1"]
    pacs.held[uid][1].popitem()
    pacs.change(uid, images=3)
    report = run(site)
    assert (report.series, report.images_now, report.failed) == (1, 0, 0)
    assert stored(site) == {site.pseudonym("P1"): 4, site.pseudonym("P2"): 4}


def test_merged_patient_gets_the_new_pseudonym(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    uid = pacs.add(1)
    run(site)
    pacs.change(uid, patient_id="P7")
    report = run(site)  # the PACS sends the images unchanged
    assert (report.failed, codes(report)) == (1, ["E_PATIENT_DIFFERS"])
    assert report.findings[0].patient_id == site.pseudonym("P7")
    assert stored(site) == {}
    for image in list(pacs.held[uid][1]):
        pacs.held[uid][1][image] = pacs.image(1, int(image[-1]), PatientID="P7")
    assert run(site).fetched_now == 1
    assert stored(site) == {site.pseudonym("P7"): 4}
    assert run(site).already == 1


def test_series_with_an_image_of_another_patient_is_refused(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    uid = pacs.add(1)
    pacs.held[uid][1][f"{uid}.2"] = pacs.image(1, 2, PatientID="P9")
    assert codes(run(site)) == ["E_PATIENT_DIFFERS"]
    assert list(site.folder.rglob("*.dcm")) == []
    assert pacs.sent == [f"{uid}.{index}" for index in range(3)]  # no more images were requested


def test_series_with_other_issuer_or_no_patient_id_is_not_fetched(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(issuer="HOSP")
    pacs.add(1, issuer="ELSEWHERE")
    pacs.add(2, patient_id="")
    pacs.add(3, issuer="HOSP")
    report = run(site)
    assert codes(report) == ["E_ISSUER", "E_NO_PATIENT_ID"]
    assert stored(site) == {site.pseudonym("P3"): 4}
    assert len(pacs.sent) == 4


@pytest.mark.parametrize(
    ("change", "code"),
    [({"patient_id": "X9", "issuer": "ELSEWHERE"}, "E_ISSUER"), ({"patient_id": ""}, "E_NO_PATIENT_ID")],
)
def test_series_that_the_pacs_takes_from_its_patient_is_deleted(
    pacs: MemoryPacs, make: Callable[..., Site], change: dict[str, str], code: str
) -> None:
    site = make(issuer="HOSP")
    uid = pacs.add(1)
    pacs.add(2)
    run(site)
    pacs.change(uid, **change)
    for _ in range(2):
        report = run(site)
        assert (report.already, report.failed, codes(report)) == (1, 1, [code])
        assert stored(site) == {site.pseudonym("P2"): 4}
    assert len(pacs.sent) == 8
    pacs.change(uid, patient_id="P1", issuer="HOSP")
    assert run(site).fetched_now == 1
    assert stored(site) == {site.pseudonym("P1"): 4, site.pseudonym("P2"): 4}


@pytest.mark.parametrize(
    ("change", "code"), [({"IssuerOfPatientID": "ELSEWHERE"}, "E_ISSUER"), ({"PatientID": ""}, "E_NO_PATIENT_ID")]
)
def test_series_whose_new_image_names_another_patient_is_deleted(
    pacs: MemoryPacs, make: Callable[..., Site], change: dict[str, str], code: str
) -> None:
    site = make(issuer="HOSP")
    uid = pacs.add(1)
    run(site)
    pacs.add(1, slices=1, first=4)
    pacs.held[uid][1][f"{uid}.4"] = pacs.image(1, 4, **change)
    assert codes(run(site)) == [code]
    assert list(site.folder.rglob("*.dcm")) == []


def test_series_whose_patient_id_cannot_be_decoded_is_not_fetched_nor_kept(
    pacs: MemoryPacs, make: Callable[..., Site]
) -> None:
    """It may have been fetched by a version that gave "Ä1" and "Ö1" one pseudonym."""
    site = make()
    uid = pacs.add(1)
    run(site)
    pacs.change(uid, patient_id="\ufffd1")
    assert codes(run(site)) == ["E_PATIENT_ID_UNDECODED"]
    assert len(pacs.sent) == 4
    pacs.change(uid, patient_id="P1")
    assert stored(site) == {} and run(site).fetched_now == 1


def test_filters_select_series(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    pacs.add(1)
    pacs.add(2, body_part="chest")
    pacs.add(3, body_part="HEAD")
    pacs.add(4, body_part="")
    pacs.add(5, modality="SR")
    pacs.add(6, modality="Doe^John")
    assert run(make()).series == 4
    site = make(filters='body_parts = ["Chest"]')
    report = run(site)
    assert (report.series, report.other_body_parts) == (2, 2)
    assert report.other_modalities == {"SR": 1, "?": 1}
    assert stored(site).keys() == {site.pseudonym("P1"), site.pseudonym("P2")}
    assert run(make(filters='body_parts = ["CHEST", ""]')).series == 3
    assert run(make(filters='modality = "SR"')).series == 1


def test_accession_list_applies_even_if_the_pacs_ignores_it(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(filters='accessions = "lists/accessions.txt"')
    (site.folder / "lists").mkdir()
    (site.folder / "lists" / "accessions.txt").write_text("\ufeff# approved\nA1\n\n  A3  \nA1\n", encoding="utf-8")
    for number in (1, 2, 3):
        pacs.add(number)
    assert site.settings.pacs is not None
    assert study_query(site, site.settings.pacs).accessions == ("A1", "A3")
    run(site)
    assert stored(site).keys() == {site.pseudonym("P1"), site.pseudonym("P3")}


def test_period_applies_even_if_the_pacs_ignores_it(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    days = ["20231231", "20240101", "20240131", "20240201", "", "2024.01.15", "2023.12.31", "some day"]
    for number, day in enumerate(days):
        pacs.add(number, study_date=day)

    def found(**filters: str) -> list[int]:
        site = make(filters="\n".join(f"{key} = {value}" for key, value in filters.items()))
        run(site)
        return [number for number in range(len(days)) if site.pseudonym(f"P{number}") in stored(site)]

    assert found(from_date="2024-01-01", to_date="2024-01-31") == [1, 2, 4, 5, 7]
    assert found(from_date="2024-01-01") == [1, 2, 3, 4, 5, 7]
    assert found(to_date="2024-01-31") == [0, 1, 2, 4, 5, 6, 7]
    assert found() == [*range(8)]


@pytest.mark.parametrize("content", [None, b"", b"# none\n", b"A1\n*\n", b"A?\n", b"A\\B\n", b"\xff\xfeA\x001\x00"])
def test_accession_list_that_would_match_everything_is_refused(
    pacs: MemoryPacs, make: Callable[..., Site], content: bytes | None
) -> None:
    site = make(filters='accessions = "accessions.txt"')
    if content is not None:
        (site.folder / "accessions.txt").write_bytes(content)
    with pytest.raises(Refusal, match="E_PACS_FILE"):
        run(site)


def test_bad_images_are_reported_and_not_fetched_again(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    uid = pacs.add(1, slices=5)
    pacs.held[uid][1][f"{uid}.1"] = b"not DICOM at all"
    pacs.held[uid][1][f"{uid}.3"] = pacs.image(1, 3, SeriesInstanceUID="")
    report = run(site)
    assert (report.fetched_now, report.failed, codes(report)) == (1, 0, ["E_NOT_DICOM", "E_PARSE"])
    assert [finding.detail for finding in report.findings] == ["1 images", "1 images"]
    assert stored(site) == {site.pseudonym("P1"): 3}
    sent = len(pacs.sent)
    again = run(site)
    assert (again.already, codes(again), len(pacs.sent)) == (1, ["E_NOT_DICOM", "E_PARSE"], sent)
    for index in (1, 3):  # repaired images are read when the series is fetched again for another reason
        pacs.held[uid][1][f"{uid}.{index}"] = pacs.image(1, index)
    next(site.ct_folder.rglob("*.dcm")).unlink()
    mended = run(site)
    assert (mended.images_now, codes(mended), stored(site)) == (5, [], {site.pseudonym("P1"): 5})


def test_series_with_values_that_are_too_long_does_not_end_the_pull(
    pacs: MemoryPacs, make: Callable[..., Site]
) -> None:
    site = make()
    for number in (1, 2, 3):
        pacs.add(number)
    kind = ["ORIGINAL", "PRIMARY", "AXIAL", *["A"] * 20_000]
    for uid in pacs.held["1.2.1"][1]:
        pacs.held["1.2.1"][1][uid] = pacs.image(2, int(uid[-1]), ImageType=kind)
    report = run(site)
    assert (report.failed, codes(report)) == (0, ["E_PARSE"])
    assert [finding.detail for finding in report.findings] == ["4 images"]
    assert stored(site) == {site.pseudonym("P1"): 4, site.pseudonym("P3"): 4}
    assert run(site).already == 3


def test_series_with_listed_but_unsent_images_fails(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    uid = pacs.add(1)
    pacs.withholds = {f"{uid}.2"}
    report = run(site)
    assert (report.failed, codes(report), stored(site)) == (1, ["E_PACS_INCOMPLETE"], {})
    pacs.withholds = set()
    assert run(site).images_now == 1
    assert stored(site) == {site.pseudonym("P1"): 4}


def test_unrequested_images_are_not_stored(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    pacs.add(1)
    run(site)
    pacs.add(1, slices=1, first=4)
    original = pacs.fetch
    pacs.fetch = lambda series, wanted: original(series, None)  # type: ignore[method-assign]
    assert run(site).images_now == 1
    assert len(pacs.sent) == 4 + 5
    assert stored(site) == {site.pseudonym("P1"): 5}


def test_pacs_without_image_count_is_asked_for_the_image_list(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    uid = pacs.add(1)
    pacs.change(uid, images=None)
    assert run(site).fetched_now == 1
    assert stored(site) == {site.pseudonym("P1"): 4}
    run(site)
    assert (pacs.lists_asked, len(pacs.sent)) == (2, 4)


def test_files_truncated_by_a_power_failure_are_fetched_again(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make(limits="retries = 0")
    pacs.add(1)
    pacs.add(2)
    run(site)
    file = next(site.ct_folder.rglob("*.dcm"))
    file.write_bytes(file.read_bytes()[:-7])
    report = run(site)
    assert (report.fetched_now, report.already, report.images_now) == (1, 1, 4)
    assert run(site).already == 2


def test_files_from_before_a_reboot_are_refetched_if_series_is_incomplete(
    pacs: MemoryPacs, make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make(limits="retries = 0")
    pacs.add(1)
    pacs.breaks_after = [3]
    run(site)
    monkeypatch.setattr(
        "pipeline.pacs.series_store.time.clock_gettime", lambda clock: -1.0
    )  # the system booted one second from now
    assert run(site).images_now == 4


def test_partial_file_of_a_killed_pull_is_not_an_image(
    pacs: MemoryPacs, make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make(limits="retries = 0")
    pacs.add(1)
    rename, calls = Path.replace, iter(range(3))

    def killed_before_the_third(self: Path, target: Path) -> Path:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed_before_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(site)
    monkeypatch.setattr(Path, "replace", rename)
    assert run(site).images_now == 2
    assert [path.suffix for path in site.folder.rglob("*.dcm*")] == [".dcm"] * 4


def test_lost_journal_causes_queries_but_no_transfer(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    pacs.add(1)
    run(site)
    for path in (site.folder / "pull").glob("journal.sqlite*"):
        path.unlink()
    report = run(site)
    assert (report.fetched_now, report.images_now, len(pacs.sent), pacs.lists_asked) == (1, 0, 4, 1)
    assert stored(site) == {site.pseudonym("P1"): 4}


def test_second_pull_at_the_same_time_is_refused(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    pacs.add(1)
    refused = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(Refusal) as caught:
            pull(site, lambda done, total: None)
        refused.append(caught.value.code)

    pull(site, meanwhile)
    assert set(refused) == {"E_PULL_RUNNING"}
    assert run(site).already == 1


def test_pull_keeps_the_configured_free_disk_space(
    pacs: MemoryPacs, make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make(limits="")
    site = init_site(site.folder.parent / "small", (site.folder / "site.toml").read_text().replace("gb = 0", "gb = 3"))
    pacs.add(1)
    free = [4e9, 4e9, 2.9e9]
    usage = type("Usage", (), {"free": property(lambda self: free.pop(0))})
    monkeypatch.setattr("pipeline.pacs.pull.shutil.disk_usage", lambda folder: usage())
    with pytest.raises(Refusal, match=r"E_DISK: .* less than 3\.0 GB"):
        run(site)
    free += [4e9] * 9
    assert run(site).images_now == 2


def test_folder_without_write_access_is_refused(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    (site.folder / "pull").write_text("in the way")
    with pytest.raises(Refusal, match="E_DISK"):
        run(site)


def test_damaged_journal_is_refused(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    site = make()
    (site.folder / "pull").mkdir()
    (site.folder / "pull" / "journal.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(Refusal, match="E_DISK"):
        run(site)


def test_transfer_rate_limit_is_respected(pacs: MemoryPacs, make: Callable[..., Site]) -> None:
    pacs.add(1, slices=20)
    size = sum(len(content) for content in pacs.held["1.1.1"][1].values()) / 1e6
    site = make(limits=f"megabytes_per_second = {size / 0.4}")
    start = time.monotonic()
    run(site)
    assert time.monotonic() - start >= 0.4


def test_pull_without_pacs_settings_is_refused(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", '[site]\nname = "ward"\n[labels]\nfile = "l.csv"\n')
    with pytest.raises(Refusal, match="E_NO_PACS"):
        run(site)


def test_no_identifier_is_written_or_logged(
    pacs: MemoryPacs, make: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    """UIDs, patient IDs and accession numbers are in no file, no file name and no log."""
    caplog.set_level(logging.DEBUG)
    site = make()
    uid = pacs.add(1, patient_id="CANARY-0042", accession="CANARY-ACC")
    for image in list(pacs.held[uid][1]):
        pacs.held[uid][1][image] = pacs.image(1, int(image[-1]), PatientID="CANARY-0042", StudyInstanceUID="1.3141592")
    pacs.change(uid, study_uid="1.3141592")
    pacs.add(2, patient_id="CANARY-0043")  # refused: the images have patient ID P2
    assert codes(run(site)) == ["E_PATIENT_DIFFERS"]
    files = [path for path in site.folder.rglob("*") if path.is_file() and path.name != "site.toml"]
    everything = b"".join(str(path).encode() + path.read_bytes() for path in files) + caplog.text.encode()
    for secret in (b"CANARY", b"3141592", b"1.1.1.", b"1.2.1."):
        assert secret not in everything, secret
    one = dcmread(next(site.ct_folder.rglob("*.dcm")))
    assert one.PatientID == site.pseudonym("CANARY-0042")


def test_series_of_a_withdrawn_patient_are_deleted_and_not_fetched_again(
    pacs: MemoryPacs, make: Callable[..., Site]
) -> None:
    site = make()
    for number in (1, 2):
        pacs.add(number)
    run(site)
    gone = site.pseudonym("P1")
    Withdrawn(site).add([gone])
    assert delete_series(site, {gone}) == 1
    assert stored(site) == {site.pseudonym("P2"): 4}
    assert gone.encode() not in b"".join(
        path.read_bytes() for path in (site.folder / "pull").iterdir() if path.is_file()
    )
    for _ in range(2):
        report = run(site)
        assert (report.already, report.fetched_now, codes(report)) == (1, 0, ["E_WITHDRAWN"])
        assert all(not finding.patient_id for finding in report.findings)
    assert stored(site) == {site.pseudonym("P2"): 4}
    assert delete_series(make(), {gone}) == 0  # nothing was pulled yet


@pytest.mark.parametrize("is_state_kept", [True, False])
def test_series_of_a_withdrawn_patient_are_deleted_although_the_site_has_no_pacs_any_more(
    pacs: MemoryPacs, make: Callable[..., Site], is_state_kept: bool
) -> None:
    site = make()
    for number in (1, 2):
        pacs.add(number)
    run(site)
    if not is_state_kept:
        shutil.rmtree(site.folder / "pull")
    own = site.folder / "ct" / "1.dcm"  # the hospital's own export
    own.parent.mkdir()
    own.write_bytes(pacs.held["1.1.1"][1]["1.1.1.0"])
    (site.folder / "site.toml").write_text('[site]\nname = "ward"\n[labels]\nfile = "labels.csv"\n')
    site = Site.open(site.folder)
    assert site.settings.pacs is None and site.ct_folder == own.parent
    assert delete_series(site, {site.pseudonym("P1")}) == 1
    left = [str(dcmread(path).PatientID) for path in (site.folder / "pacs").glob("*/*.dcm")]
    assert left == [site.pseudonym("P2")] * 4
    assert own.is_file()


def test_series_of_a_withdrawn_patient_are_found_without_the_journal(
    pacs: MemoryPacs, make: Callable[..., Site]
) -> None:
    site = make()
    for number in (1, 2, 3):
        pacs.add(number)
    run(site)
    (site.folder / "pull" / "partial").mkdir(exist_ok=True)
    for number, patient in ((1, "P1"), (3, "P3")):  # series whose fetch was interrupted
        (folder,) = (
            path for path in site.ct_folder.iterdir() if site.pseudonym(patient) in str(dcmread(next(path.iterdir())))
        )
        folder.rename(site.folder / "pull" / "partial" / f"{number}")
    for path in (site.folder / "pull").glob("journal.sqlite*"):
        path.unlink()
    assert delete_series(site, {site.pseudonym("P1"), site.pseudonym("P2")}) == 2
    left = [path for folder in ("pacs", "pull/partial") for path in (site.folder / folder).glob("*/*.dcm")]
    assert {str(dcmread(path).PatientID) for path in left} == {site.pseudonym("P3")}
