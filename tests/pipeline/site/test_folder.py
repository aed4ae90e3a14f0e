"""A site: its folder, its key, its pseudonyms, and that two sites never share any of them."""

import stat
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.site.folder import Site, init_site

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
PATIENTS = [f"SYNTHETIC-{number:05d}" for number in range(4000)]


def code_of(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code


def test_a_new_site_keeps_its_key_to_its_owner(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", SETTINGS)
    key = site.folder / "keys" / "pseudonym.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert len(key.read_bytes()) == 32
    other = init_site(tmp_path / "other", SETTINGS)
    assert key.read_bytes() != (other.folder / "keys" / "pseudonym.key").read_bytes()


def test_a_site_is_never_made_over_another(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS)
    key = (tmp_path / "keys" / "pseudonym.key").read_bytes()
    assert code_of(init_site, tmp_path, SETTINGS.replace("ward", "other")) == "E_SITE_EXISTS"
    assert (tmp_path / "keys" / "pseudonym.key").read_bytes() == key
    assert Site.open(tmp_path).name == site.name == "ward"


def test_an_init_that_broke_off_goes_on_with_the_same_key(tmp_path: Path) -> None:
    """A new key would give every patient another pseudonym and another split."""
    before = init_site(tmp_path, SETTINGS).pseudonym("SYNTHETIC-1")
    (tmp_path / "site.toml").unlink()
    assert init_site(tmp_path, SETTINGS).pseudonym("SYNTHETIC-1") == before


def test_what_is_no_site_is_refused(tmp_path: Path) -> None:
    assert code_of(Site.open, tmp_path) == "E_NO_SITE"
    assert code_of(Site.open, tmp_path / "nowhere") == "E_NO_SITE"


@pytest.mark.parametrize(
    "wrong", ['name = "Ward 7"', 'name = "../ward"', 'name = ""', 'name = "ward"\nmin_patients = 1']
)
def test_wrong_settings_are_refused_by_key(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(Refusal, match=r"site\.(name|min_patients)") as caught:
        init_site(tmp_path, SETTINGS.replace('name = "ward"', wrong))
    assert caught.value.code == "E_SETTINGS_KEY"


@pytest.mark.parametrize("content", [None, b"", b"k" * 31], ids=["missing", "empty", "short"])
def test_a_lost_or_damaged_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """With an empty key anyone could make the pseudonyms."""
    init_site(tmp_path, SETTINGS)
    key = tmp_path / "keys" / "pseudonym.key"
    key.unlink() if content is None else key.write_bytes(content)
    assert code_of(Site.open(tmp_path).pseudonym, "SYNTHETIC-1") == "E_SITE_KEY"
    assert code_of(Site.open(tmp_path).split, "SYNTHETIC-1") == "E_SITE_KEY"


def test_paths_are_read_against_the_source_and_two_sites_stay_apart(tmp_path: Path) -> None:
    """The table [ct] is left out: its default must not be shared between sites."""
    for name, source in (("a", "/hospital/a"), ("b", "../exports"), ("c", "")):
        line = f'source = "{source}"\n' if source else ""
        init_site(tmp_path / name, SETTINGS.replace("[laboratory]", f"{line}[laboratory]"))
    a, b, c = (Site.open(tmp_path / name) for name in "abc")
    assert a.settings.ct.folder == Path("/hospital/a/ct")
    assert a.settings.laboratory.file == Path("/hospital/a/pcr.csv")
    assert b.settings.ct.folder.resolve() == (tmp_path / "exports" / "ct").resolve()
    assert c.settings.ct.folder.resolve() == (tmp_path / "c" / "ct").resolve()
    assert c.settings.outcomes.file.resolve() == (tmp_path / "c" / "outcomes.csv").resolve()


def test_pseudonyms_differ_between_patients_and_between_sites(tmp_path: Path) -> None:
    site, other = init_site(tmp_path / "a", SETTINGS), init_site(tmp_path / "b", SETTINGS)
    pseudonyms = {site.pseudonym(patient) for patient in PATIENTS}
    assert len(pseudonyms) == len(PATIENTS)
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in pseudonyms)
    assert not pseudonyms & {other.pseudonym(patient) for patient in PATIENTS}
    assert Site.open(tmp_path / "a").pseudonym(PATIENTS[0]) == site.pseudonym(PATIENTS[0])


def test_any_text_can_be_an_identifier(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS)
    assert (
        len({site.pseudonym(text) for text in ("", " ", "é", "e\N{COMBINING ACUTE ACCENT}", "|", "a|b", "0", "00")})
        == 8
    )


def test_splits_have_their_shares_and_stay(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS, key=b"k" * 32)
    splits = [site.split(patient) for patient in PATIENTS]
    assert splits.count("test") / len(splits) == pytest.approx(0.25, abs=0.02)
    assert splits.count("validation") / len(splits) == pytest.approx(0.15, abs=0.02)
    assert splits.count("train") / len(splits) == pytest.approx(0.60, abs=0.025)
    assert [Site.open(tmp_path).split(patient) for patient in PATIENTS] == splits


def test_the_split_cannot_be_read_off_the_pseudonym(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS, key=b"k" * 32)
    low = [site.split(p) for p in PATIENTS if int(site.pseudonym(p)[:8], 16) < 2**31]
    assert low.count("test") / len(low) == pytest.approx(0.25, abs=0.03)
