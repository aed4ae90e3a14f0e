"""Import of STOIC2021 as sites. The files have the published layout; their content is synthetic."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import ingest
from pipeline.datasets.common import Imported
from pipeline.datasets.stoic2021 import import_stoic2021
from pipeline.imaging.readers import find_scans, read_scan
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records.labels import Label, read_labels
from pipeline.site.folder import Site
from tests.helpers.chests import tree, write_chest
from tests.helpers.volume_images import image, save

HEADER = "PatientID,probCOVID,probSevere"
DECADES = ("035Y", "045Y", "055Y", "065Y", "075Y", "085Y")


def published(folder: Path, rows: Sequence[str], scans: Sequence[int]) -> Path:
    """Write tiny scans. Ages and spacings vary independently."""
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata" / "reference.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    for number in scans:
        tags = {"PatientAge": DECADES[number % 6], "PatientSex": "MF"[number % 2]} if number % 10 else {}
        made = image([[[0]]], spacing_mm=(0.5 + number % 7 / 2, 1.0, 1.0), **tags)
        save(made, folder / "data" / "mha" / f"{number}.mha")
    return folder


def rows(numbers: Sequence[int]) -> list[str]:
    """Every third patient is negative, every fourth severe. Negative and severe is a pair that is never published."""
    return [f"{number},{int(number % 3 > 0)},{int(number % 4 == 0)}" for number in numbers]


def run(folder: Path, out: Path, *, sites: int = 3, split: str = "equal", seed: int = 1) -> Imported:
    return import_stoic2021(folder, out, sites=sites, split=split, seed=seed, progress=lambda done, total: None)


def members(out: Path) -> dict[str, list[str]]:
    return {site.name: sorted(path.stem for path in (site / "ct").iterdir()) for site in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty patients. Shared by tests: do not modify."""
    numbers = range(1, 51)
    return published(tmp_path_factory.mktemp("stoic"), rows(numbers), numbers)


@pytest.mark.parametrize("split", ["equal", "skewed"])
def test_every_patient_is_in_one_site_and_sites_have_equal_size(data: Path, tmp_path: Path, split: str) -> None:
    before = tree(data)
    made = run(data, tmp_path / "sites", split=split)
    shares = members(tmp_path / "sites")
    assert made.sites == {name: len(share) for name, share in shares.items()}
    assert sorted(made.sites.values()) == [16, 17, 17]
    assert sorted(patient for share in shares.values() for patient in share) == sorted(map(str, range(1, 51)))
    assert made.findings == []
    assert tree(data) == before


@pytest.mark.parametrize("split", ["equal", "skewed"])
def test_same_seed_gives_the_same_sites_and_pseudonym_keys(data: Path, tmp_path: Path, split: str) -> None:
    for name in ("a", "b"):
        run(data, tmp_path / name, split=split)
    assert members(tmp_path / "a") == members(tmp_path / "b")
    sites = ("stoic2021-1", "stoic2021-2")
    keys = [(tmp_path / name / site / "keys" / "pseudonym.key").read_bytes() for name in "ab" for site in sites]
    assert keys[:2] == keys[2:] and keys[0] != keys[1]


def test_other_seed_gives_other_sites(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", seed=1)
    run(data, tmp_path / "b", seed=2)
    assert members(tmp_path / "a") != members(tmp_path / "b")


def test_skewed_split_differs_by_age_and_slice_spacing(data: Path, tmp_path: Path) -> None:
    def means(split: str) -> list[tuple[float, float]]:
        run(data, tmp_path / split, split=split)
        found = [find_scans(site / "ct")[0] for site in sorted((tmp_path / split).iterdir())]
        spacing = {str(number): 0.5 + number % 7 / 2 for number in range(1, 51)}
        return [(mean(s.age_years or 60.0 for s in f), mean(spacing[s.patient_id] for s in f)) for f in found]

    ages, spacings = zip(*means("skewed"), strict=True)
    assert sorted(ages) == list(ages)
    assert sorted(spacings) == list(spacings)
    assert ages[-1] - ages[0] > 15
    assert spacings[-1] - spacings[0] > 0.8
    ages, spacings = zip(*means("equal"), strict=True)
    assert max(ages) - min(ages) < 15
    assert max(spacings) - min(spacings) < 0.8


def test_site_toml_documents_the_split_rule(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "sites", split="skewed", seed=7)
    for number in (1, 2, 3):
        text = (tmp_path / "sites" / f"stoic2021-{number}" / "site.toml").read_text().replace("\n# ", " ")
        assert f"Site {number} of 3, made from STOIC2021 (CC BY-NC 4.0)" in text
        assert "Split: skewed, seed 7." in text
        assert "sum of two ranks, of age and of slice spacing" in text


def test_published_labels_are_imported_with_severity_for_positives_only(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "sites")
    read: dict[str, Label] = {}
    for folder in (tmp_path / "sites").iterdir():
        table = Site.open(folder).settings.labels
        assert table is not None
        assert "month" in table.severe_means
        labels, findings = read_labels(table)
        assert findings == []
        read |= labels
    assert len(read) == 50
    for patient, label in read.items():
        positive = int(patient) % 3 > 0
        assert label == Label(positive, int(patient) % 4 == 0 if positive else None)


def test_patients_without_scan_or_row_are_excluded_and_counted(tmp_path: Path) -> None:
    data = published(tmp_path / "data", rows([1, 2, 3, 4]), [3, 4, 5])
    (data / "data" / "mha" / "notes.txt").write_text("not a scan")
    made = run(data, tmp_path / "sites", sites=1)
    assert members(tmp_path / "sites") == {"stoic2021-1": ["3", "4"]}
    assert [(r.code, n) for r, n in made.counts] == [("E_NO_SCAN", 2), ("E_NO_LABEL", 1)]


def test_unreadable_image_header_is_left_to_ingest(tmp_path: Path) -> None:
    data = published(tmp_path / "data", rows([1, 2, 3]), [1, 2, 3])
    (data / "data" / "mha" / "2.mha").write_bytes(b"nothing")
    made = run(data, tmp_path / "sites", sites=1, split="skewed")
    assert made.sites == {"stoic2021-1": 3}
    found, findings = find_scans(tmp_path / "sites" / "stoic2021-1" / "ct")
    assert [s.patient_id for s in found] == ["1", "3"]
    assert [(f.reason.code, f.patient_id) for f in findings] == [("E_VOLUME_FILE", "2")]


REFUSED = {
    "a patient twice": (["1,1,0", "2,1,0", "1,1,0"], "E_IMPORT_DUPLICATE"),
    "a probability": (["1,0.7,0", "2,1,0"], "E_IMPORT_LABEL"),
    "a missing label": (["1,1,", "2,1,0"], "E_IMPORT_LABEL"),
    "nobody known": (["8,1,0", "9,1,0"], "E_LAYOUT"),
    "a way out": (["../../secret,1,0"], "E_LAYOUT"),
}


@pytest.mark.parametrize(("table", "code"), REFUSED.values(), ids=REFUSED)
def test_table_that_differs_from_the_published_format_is_refused(tmp_path: Path, table: list[str], code: str) -> None:
    data = published(tmp_path / "CANARY", table, [1, 2])
    with pytest.raises(Refusal) as caught:
        run(data, tmp_path / "sites", sites=1)
    assert caught.value.code == code
    assert "CANARY" not in str(caught.value)
    assert not (tmp_path / "sites").exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{HEADER};\n1;1;0\n".replace(",", ";").encode(), "column 'PatientID' occurs 0 times"),
        (f"{HEADER}\n1,1,0\n".replace("probSevere", "severe").encode(), "column 'probSevere' occurs 0 times"),
        (f"{HEADER},Klinik Köln\n1,1,0,0\n".encode("latin-1"), "its text is not UTF-8"),
        (b"", "column 'PatientID' occurs 0 times"),
    ],
)
def test_table_that_a_spreadsheet_changed_is_refused_without_talk_of_site_toml(
    tmp_path: Path, text: bytes, fault: str
) -> None:
    """No site exists yet, so its settings cannot be the remedy."""
    data = published(tmp_path / "data", rows([1]), [1])
    (data / "metadata" / "reference.csv").write_bytes(text)
    with pytest.raises(Refusal, match="E_IMPORT_TABLE") as caught:
        run(data, tmp_path / "sites", sites=1)
    assert fault in caught.value.says
    assert "site.toml" not in caught.value.remedy
    assert not (tmp_path / "sites").exists()


@pytest.mark.parametrize("missing", ["metadata/reference.csv", "data/mha"])
def test_other_layout_is_refused_with_the_missing_path(tmp_path: Path, missing: str) -> None:
    data = published(tmp_path / "data", rows([1]), [1])
    (data / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match=missing) as caught:
        run(data, tmp_path / "sites", sites=1)
    assert caught.value.code == "E_LAYOUT"


def test_output_folder_must_be_new_and_outside_the_data(data: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    before = tree(data)
    for out in (tmp_path / "used", tmp_path / "used" / "file", data, data / "sites"):
        with pytest.raises(Refusal) as caught:
            run(data, out)
        assert caught.value.code == "E_IMPORT_OUT"
    assert tree(data) == before


def test_more_sites_than_patients_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        run(data, tmp_path / "sites", sites=51)
    assert caught.value.code == "E_IMPORT_SITES"


@pytest.mark.usefixtures("in_this_process")
def test_imported_sites_can_be_ingested(tmp_path: Path) -> None:
    data = published(tmp_path / "data", rows(range(1, 7)), [])
    for number in range(1, 7):
        write_chest(
            data / "data" / "mha" / f"{number}.mha", slice_mm=5.0, noise_seed=number, PatientAge="045Y", PatientSex="F"
        )
    run(data, tmp_path / "sites", sites=2)
    patients = []
    for folder in sorted((tmp_path / "sites").iterdir()):
        site = Site.open(folder)
        assessment = ingest(site, Preprocessing(), lambda done, total: None)
        # The chests of this test are 180 mm high, and lower than a whole one.
        assert {finding.reason.code for finding in assessment.findings} <= {"W_LUNGS_FLAT"}
        assert {p.pseudonym for p in assessment.patients} == {
            site.pseudonym(s.patient_id) for s in find_scans(site.ct_folder)[0]
        }
        patients += assessment.patients
    assert len(patients) == 6
    assert {(p.age_years, p.sex) for p in patients} == {(45.0, "F")}
    assert sorted((p.pcr_positive, p.severe) for p in patients if p.pcr_positive) == [
        (True, False),
        (True, False),
        (True, False),
        (True, True),
    ]
    assert [p.severe for p in patients if not p.pcr_positive] == [None, None]
    assert read_scan(find_scans(tmp_path / "sites" / "stoic2021-1" / "ct")[0][0]).hu.shape == (36, 96, 96)


def test_volume_files_that_are_not_examined_count_among_the_series_found(tmp_path: Path) -> None:
    """So that the numbers of the table add up, and a cut copy is seen there."""
    data = published(tmp_path / "data", rows(range(1, 6)), range(2, 6))
    write_chest(data / "data" / "mha" / "1.mha", slice_mm=5.0, noise_seed=1, PatientAge="045Y", PatientSex="F")
    run(data, tmp_path / "sites", sites=1)
    site = Site.open(tmp_path / "sites" / "stoic2021-1")
    for scan, content in (("2.mha", b""), ("3.mha", (data / "data" / "mha" / "3.mha").read_bytes()[:40])):
        (site.ct_folder / scan).unlink()
        (site.ct_folder / scan).write_bytes(content)
    (site.ct_folder / "copies").mkdir()
    (site.ct_folder / "copies" / "4.mha").symlink_to(data / "data" / "mha" / "4.mha")
    done = []
    assessment = ingest(site, Preprocessing(), lambda *each: done.append(each))
    counts = {count.key: count.count for _, count in assessment.waterfall.walk()}
    assert (counts["found"], counts["accepted"], counts["E_VOLUME_FILE"], counts["E_VOLUME_NAME"]) == (6, 1, 2, 2)
    assert done[-1] == (6, 6)
