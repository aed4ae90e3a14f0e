"""The cohort store: stored content, concurrent access and atomic writes."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.refusal import Refusal
from pipeline.cohort.store import Cohort, FindingRow, PatientRow, Scan, UnlabelledRow
from pipeline.cohort.tensor_files import save_tensor
from pipeline.preprocessing.measures import Measures
from pipeline.site.folder import Site, init_site

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
MEASURES = Measures(1.25, 0.7, None, 240, 4200, False, -998.0, -905, 31.2, 180.0, 0.2, "HFS", "SIEMENS", "B30F", "soft")
SCAN = Scan("f1", "s1", None, None, "W_THICK", "d1", "f1-s1.npy", MEASURES)
REFUSED = Scan("f2", "s1", "E_TILT", "tilted by 15 degrees", "", None, None, None)
ALL = {"f1", "f2", "f3", "f4"}
ANNE = PatientRow("a" * 16, "train", "f1-s1.npy", 63.0, "F", True, True)
BERT = PatientRow("b" * 16, "test", "f3-s1.npy", None, None, False, None)
CARL = PatientRow("c" * 16, "train", "f4-s1.npy", 70.5, "M", True, False)
FOUND = FindingRow("E_TILT", "d" * 16, "f2", "tilted by 15 degrees")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", SETTINGS)


@pytest.fixture
def cohort(site: Site) -> Iterator[Cohort]:
    with Cohort(site) as cohort:
        yield cohort


def test_patients_are_stored_unchanged_and_sorted_by_pseudonym(site: Site, cohort: Cohort) -> None:
    cohort.replace([CARL, ANNE, BERT], [FOUND], ALL)
    assert cohort.patients() == [ANNE, BERT, CARL]
    with Cohort(site) as again:
        assert again.patients() == [ANNE, BERT, CARL]


def test_examples_are_those_of_the_requested_splits(cohort: Cohort) -> None:
    cohort.replace([CARL, ANNE, BERT], [], ALL)
    train = cohort.examples("train")
    assert [(e.tensor.name, e.age_years, e.sex, e.pcr_positive, e.severe) for e in train] == [
        ("f1-s1.npy", 63.0, "F", True, True),
        ("f4-s1.npy", 70.5, "M", True, False),
    ]
    assert [e.severe for e in cohort.examples("test", "validation")] == [None]
    assert len(cohort.examples("train", "validation", "test")) == 3
    assert cohort.examples() == []


def test_interrupted_replacement_keeps_the_old_cohort(cohort: Cohort) -> None:
    cohort.replace([ANNE], [FOUND], ALL)

    def breaking() -> Iterator[PatientRow]:
        yield BERT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.replace(breaking(), [], ALL)
    assert cohort.patients() == [ANNE]
    cohort.replace([CARL], [], ALL)
    assert cohort.patients() == [CARL]


def test_scan_is_cached_per_settings_while_its_tensor_is_whole(site: Site, cohort: Cohort) -> None:
    save_tensor(cohort.tensors, "f1-s1.npy", np.zeros(3, np.float16))
    cohort.add_scan(SCAN)
    cohort.add_scan(REFUSED)
    with Cohort(site) as again:
        assert again.scans("s1") == {"f1": SCAN, "f2": REFUSED}
        assert again.scans("s2") == {}
    tensor = cohort.tensors / "f1-s1.npy"
    tensor.write_bytes(tensor.read_bytes()[:-1])
    assert cohort.scans("s1") == {"f2": REFUSED}, "a scan with a damaged tensor must be prepared again"
    tensor.unlink()
    assert cohort.scans("s1") == {"f2": REFUSED}, "a scan without its tensor must be prepared again"


def test_scan_cached_under_two_settings_keeps_both_entries(cohort: Cohort) -> None:
    cohort.add_scan(REFUSED)
    cohort.add_scan(replace(REFUSED, settings="s2"))
    assert cohort.scans("s1").keys() == cohort.scans("s2").keys() == {"f2"}


def test_cohort_reports_the_settings_of_its_patients(cohort: Cohort) -> None:
    assert cohort.settings() == set()
    cohort.add_scan(SCAN)
    cohort.add_scan(replace(SCAN, settings="s2", tensor="f1-s2.npy"))
    cohort.replace([ANNE], [], ALL)
    assert cohort.settings() == {"s1"}
    cohort.replace([replace(ANNE, tensor="f1-s2.npy")], [], ALL)
    assert cohort.settings() == {"s2"}


def test_example_has_the_measures_of_its_own_scan(cohort: Cohort) -> None:
    cohort.add_scan(SCAN)
    cohort.add_scan(replace(SCAN, settings="s2", tensor="f1-s2.npy", measures=replace(MEASURES, manufacturer="GE")))
    cohort.replace([ANNE, BERT], [], ALL)
    found = {example.tensor.name: example.measures for example in cohort.examples("train", "validation", "test")}
    assert found == {ANNE.tensor: MEASURES, BERT.tensor: None}
    cohort.replace([replace(ANNE, tensor="f1-s2.npy")], [], ALL)
    assert [example.measures.manufacturer for example in cohort.examples(ANNE.split) if example.measures] == ["GE"]


def test_scans_without_files_are_removed_for_all_settings(cohort: Cohort) -> None:
    for settings in ("s1", "s2"):
        cohort.add_scan(replace(REFUSED, settings=settings))
        cohort.add_scan(replace(REFUSED, fingerprint="f5", settings=settings))
    cohort.replace([], [], {"f2"})
    assert cohort.scans("s1").keys() == cohort.scans("s2").keys() == {"f2"}


def test_sweep_deletes_only_tensors_that_belong_to_no_scan(cohort: Cohort) -> None:
    for name in ("f1-s1.npy", "f1-s2.npy", "f9-s1.npy"):
        save_tensor(cohort.tensors, name, np.zeros(3, np.float16))
    (cohort.tensors / ".f1-s1.npy.4711").write_bytes(b"half")
    cohort.add_scan(SCAN)
    cohort.add_scan(replace(SCAN, settings="s2", tensor="f1-s2.npy"))
    cohort.sweep()
    assert {path.name for path in cohort.tensors.iterdir()} == {"f1-s1.npy", "f1-s2.npy"}
    cohort.sweep()
    assert cohort.scans("s1") == {"f1": SCAN}


def test_single_writer_and_concurrent_readers(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE], [], ALL)
    with cohort.alone():
        with Cohort(site) as other:
            assert other.patients() == [ANNE]
            with pytest.raises(Refusal) as caught, other.alone():
                raise AssertionError
        assert caught.value.code == "E_COHORT_BUSY"
    with Cohort(site) as other, other.alone():
        pass


# --- read-only access -------------------------------------------------------------------------------------


def test_read_only_cohort_has_the_same_content_and_changes_no_file(site: Site, cohort: Cohort) -> None:
    cohort.replace([CARL, ANNE, BERT], [FOUND], ALL)
    cohort.add_scan(SCAN)
    before = {path: path.stat().st_mtime_ns for path in site.cohort_folder.rglob("*")}
    with Cohort.read(site) as reader:
        assert reader.patients() == cohort.patients()
        assert reader.examples("train") == cohort.examples("train")
        assert reader.settings() == cohort.settings() == {"s1"}
        assert {path: path.stat().st_mtime_ns for path in site.cohort_folder.rglob("*")} == before
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.add_scan(REFUSED)


def test_database_needs_no_extra_files_for_reading(site: Site) -> None:
    """A write-ahead log needs a shared-memory file next to the database, which a read-only mount does not allow."""
    with Cohort(site) as cohort:
        cohort.replace([ANNE], [], ALL)
        assert {path.name for path in site.cohort_folder.iterdir()} == {"cohort.sqlite", "tensors"}
    with sqlite3.connect(site.cohort_folder / "cohort.sqlite") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_database_in_wal_mode_of_an_earlier_release_can_be_read(site: Site) -> None:
    with Cohort(site) as cohort:
        cohort.replace([ANNE], [], ALL)
    database = sqlite3.connect(site.cohort_folder / "cohort.sqlite")
    assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.close()
    with Cohort(site):
        pass
    with Cohort.read(site) as reader:
        assert reader.patients() == [ANNE]


def test_reader_sees_the_old_cohort_until_a_change_is_committed(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE], [], ALL)
    seen = []

    def looking() -> Iterator[PatientRow]:
        yield BERT
        with Cohort.read(site) as reader:
            seen.append(reader.patients())

    cohort.replace(looking(), [], ALL)
    assert seen == [[ANNE]]
    with Cohort.read(site) as reader:
        assert reader.patients() == [BERT]


def test_writer_waits_for_an_open_read_transaction(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE], [], ALL)

    def write() -> None:
        with Cohort(site) as other:
            other.replace([BERT], [], ALL)

    file = site.cohort_folder / "cohort.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT pseudonym FROM patients").fetchall() == [(ANNE.pseudonym,)]
        writer = threading.Thread(target=write)
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()
        assert reader.execute("SELECT pseudonym FROM patients").fetchall() == [(ANNE.pseudonym,)]
        reader.execute("COMMIT")
    writer.join(60)
    with Cohort.read(site) as reader:
        assert reader.patients() == [BERT]


@pytest.mark.parametrize("left", ["nothing", "another version", "half a file"])
def test_unreadable_cohort_is_refused_and_not_modified(site: Site, left: str) -> None:
    file = site.cohort_folder / "cohort.sqlite"
    if left != "nothing":
        with Cohort(site) as cohort:
            cohort.replace([ANNE], [], ALL)
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA user_version = 1")
    if left == "half a file":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    before = file.read_bytes() if file.exists() else None
    with pytest.raises(Refusal) as caught:
        Cohort.read(site)
    assert caught.value.code == "E_COHORT_FILE"
    assert (file.read_bytes() if file.exists() else None) == before


# --- patients without labels ------------------------------------------------------------------------------

ZOE = UnlabelledRow("d" * 16, "f1-s1.npy")


def test_unlabelled_patients_are_apart_from_the_others(site: Site, cohort: Cohort) -> None:
    cohort.add_scan(SCAN)
    cohort.replace([BERT], [], ALL, [ZOE])
    assert cohort.unlabelled() == [ZOE]
    assert cohort.patients() == [BERT]
    assert [example.pseudonym for example in cohort.examples("train", "validation", "test")] == [BERT.pseudonym]
    assert cohort.settings() == set()
    with Cohort.read(site) as reader:
        assert reader.unlabelled() == [ZOE]
    cohort.replace([BERT], [], ALL)
    assert cohort.unlabelled() == []


def test_cohort_of_a_version_without_unlabelled_patients_stays_valid(site: Site) -> None:
    with Cohort(site) as cohort:
        cohort.replace([ANNE], [], ALL)
    with sqlite3.connect(site.cohort_folder / "cohort.sqlite") as database:
        database.execute("DROP TABLE unlabelled")
    with Cohort.read(site) as reader:
        assert (reader.patients(), reader.unlabelled()) == ([ANNE], [])
    with Cohort(site) as cohort:
        assert (cohort.patients(), cohort.unlabelled()) == ([ANNE], [])


def test_rows_that_an_older_version_left_are_not_read(site: Site, cohort: Cohort) -> None:
    """An older version replaces patients and scans and does not know the table: a row may name a patient who got a
    label or withdrew since.
    """
    cohort.add_scan(SCAN)
    cohort.replace([], [], ALL, [ZOE, UnlabelledRow("e" * 16, "gone.npy"), UnlabelledRow(ANNE.pseudonym, ANNE.tensor)])
    with sqlite3.connect(site.cohort_folder / "cohort.sqlite") as database:
        database.execute("INSERT INTO patients VALUES (?, 'train', ?, 63, 'F', 1, 1)", (ANNE.pseudonym, ANNE.tensor))
    assert cohort.unlabelled() == [ZOE]


def test_damaged_database_is_refused(site: Site) -> None:
    site.cohort_folder.mkdir()
    (site.cohort_folder / "cohort.sqlite").write_bytes(b"no SQLite at all" * 300)
    with pytest.raises(Refusal) as caught:
        Cohort(site)
    assert caught.value.code == "E_COHORT_FILE"


# --- the revision of the training patients ----------------------------------------------------------------


def revision(site: Site) -> str:
    with closing(sqlite3.connect(site.cohort_folder / "cohort.sqlite")) as database:
        return str(database.execute("SELECT training FROM revision").fetchone()[0])


def test_training_patients_that_change_there_and_back_get_another_revision(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE, BERT], [], ALL)
    revisions = [revision(site)]
    for rows in ([ANNE, BERT, CARL], [ANNE, BERT], [replace(ANNE, tensor="f2-s1.npy"), BERT], [ANNE, BERT]):
        cohort.replace(rows, [], ALL)
        revisions.append(revision(site))
    assert len(set(revisions)) == 5


def test_ingest_that_leaves_the_training_patients_as_they_are_keeps_the_revision(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE, CARL], [], ALL)
    before = revision(site)
    cohort.replace([CARL, ANNE], [FOUND], ALL)
    cohort.replace([CARL, ANNE, BERT], [FOUND], ALL)  # a test patient
    assert revision(site) == before


def test_interrupted_replacement_keeps_the_revision(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE], [], ALL)
    before = revision(site)

    def breaking() -> Iterator[UnlabelledRow]:
        yield UnlabelledRow("d" * 16, "f2-s1.npy")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cohort.replace([CARL], [], ALL, breaking())
    assert revision(site) == before


def test_cohort_of_a_version_without_revisions_gets_one_at_the_next_change(site: Site, cohort: Cohort) -> None:
    cohort.replace([ANNE], [], ALL)
    with closing(sqlite3.connect(site.cohort_folder / "cohort.sqlite", isolation_level=None)) as database:
        database.execute("DROP TABLE revision")
    with Cohort(site) as again:
        assert again.patients() == [ANNE]
        again.replace([CARL], [], ALL)
    assert revision(site)


# --- versions of the examination --------------------------------------------------------------------------


def test_version_of_the_examination_is_kept_per_scan_and_settings(site: Site, cohort: Cohort) -> None:
    cohort.add_scan(REFUSED, 1)
    cohort.add_scan(replace(REFUSED, settings="s2"), 2)
    cohort.add_scan(replace(REFUSED, fingerprint="f3"), 2)
    with Cohort(site) as again:
        assert again.examined("s1", 1) == {"f2"}
        assert again.examined("s1", 2) == {"f3"}
        assert again.examined("s2", 2) == {"f2"}
        again.add_scan(REFUSED, 2)
        assert (again.examined("s1", 1), again.examined("s1", 2)) == (set(), {"f2", "f3"})


def test_version_of_the_examination_is_removed_with_the_scan(cohort: Cohort) -> None:
    for fingerprint in ("f2", "f5"):
        cohort.add_scan(replace(REFUSED, fingerprint=fingerprint), 1)
    cohort.replace([], [], {"f2"})
    assert cohort.examined("s1", 1) == {"f2"}


def test_scans_of_a_version_without_such_versions_stay_known(site: Site) -> None:
    with Cohort(site) as cohort:
        cohort.add_scan(REFUSED, 1)
    with closing(sqlite3.connect(site.cohort_folder / "cohort.sqlite", isolation_level=None)) as database:
        database.execute("DROP TABLE examined")
    with Cohort(site) as cohort:
        assert cohort.scans("s1").keys() == {"f2"}
        assert cohort.examined("s1", 1) == set()
