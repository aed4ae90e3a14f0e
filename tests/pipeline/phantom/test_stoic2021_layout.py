"""Tests of the synthetic stand-in for STOIC2021: it is read like the real data set."""

from pathlib import Path

from pipeline.datasets.stoic2021 import import_stoic2021, is_synthetic
from pipeline.phantom.stoic2021_layout import synthetic_stoic2021
from pipeline.scoring.single_scan import read_one


def test_stand_in_is_imported_like_the_data_set(tmp_path: Path) -> None:
    synthetic_stoic2021(tmp_path / "stoic2021", patients=4)
    imported = import_stoic2021(
        tmp_path / "stoic2021", tmp_path / "sites", sites=2, split="skewed", seed=1, progress=lambda done, of: None
    )
    assert imported.sites == {"stoic2021-1": 2, "stoic2021-2": 2} and imported.findings == []
    assert is_synthetic(tmp_path / "stoic2021")
    assert "synthetic patients" in (tmp_path / "sites" / "stoic2021-1" / "site.toml").read_text()
    scan = read_one(tmp_path / "stoic2021" / "data" / "mha" / "0.mha")
    assert scan.series.age_years is not None and scan.series.sex in ("F", "M")


def test_same_number_of_patients_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        synthetic_stoic2021(tmp_path / name, patients=1)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")]
    assert len(files) == 3
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
