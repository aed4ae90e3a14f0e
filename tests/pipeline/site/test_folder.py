"""Tests of a site's folder, key, pseudonyms and splits. Two sites never share a key or a pseudonym."""

import stat
import tomllib
from pathlib import Path

import numpy as np
import pytest

from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.site.site_data import read_series_list
from tests.helpers.volume_images import image, save

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
PATIENTS = [f"SYNTHETIC-{number:05d}" for number in range(4000)]


def code_of(call: object, *arguments: object) -> str:
    assert callable(call)
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.code


def test_new_site_key_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", SETTINGS)
    key = site.folder / "keys" / "pseudonym.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert len(key.read_bytes()) == 32
    other = init_site(tmp_path / "other", SETTINGS)
    assert key.read_bytes() != (other.folder / "keys" / "pseudonym.key").read_bytes()


def test_init_does_not_overwrite_an_existing_site(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS)
    key = (tmp_path / "keys" / "pseudonym.key").read_bytes()
    assert code_of(init_site, tmp_path, SETTINGS.replace("ward", "other")) == "E_SITE_EXISTS"
    assert (tmp_path / "keys" / "pseudonym.key").read_bytes() == key
    assert Site.open(tmp_path).name == site.name == "ward"


def test_interrupted_init_continues_with_the_same_key(tmp_path: Path) -> None:
    """A new key would change the pseudonym and the split of every patient."""
    before = init_site(tmp_path, SETTINGS).pseudonym("SYNTHETIC-1")
    (tmp_path / "site.toml").unlink()
    assert init_site(tmp_path, SETTINGS).pseudonym("SYNTHETIC-1") == before


def test_folder_that_is_not_a_site_is_refused(tmp_path: Path) -> None:
    assert code_of(Site.open, tmp_path) == "E_NO_SITE"
    assert code_of(Site.open, tmp_path / "nowhere") == "E_NO_SITE"


@pytest.mark.parametrize(
    "wrong", ['name = "Ward 7"', 'name = "../ward"', 'name = ""', 'name = "ward"\nmin_patients = 1']
)
def test_wrong_settings_are_refused_by_key(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(Refusal, match=r"site\.(name|min_patients)") as caught:
        init_site(tmp_path / "site", SETTINGS.replace('name = "ward"', wrong))
    assert caught.value.code == "E_SETTINGS_KEY"
    assert not (tmp_path / "site").exists(), "half a site would stop the next `node init`"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[gateway]\nmin_batch_size = 64\nmax_batch_size = 4\n", "min_batch_size is larger"),
        ("[gateway]\nmin_batch_size = 65\n", "min_batch_size is larger"),
        ("[gateway]\nmax_update = inf\n", "max_update"),
        ("[gateway]\nmax_update = nan\n", "max_update"),
        ("[privacy]\nmax_delta = 0.5\n", "max_delta"),  # half of the patients may lose all protection
        ('[ct]\nlung_masks = "ct/masks"\n', "lung_masks must be outside"),
        ('[ct]\nlung_masks = "ct"\n', "lung_masks must be outside"),
        ('[ct]\nfolder = "."\nlung_masks = "masks"\n', "lung_masks must be outside"),
        ('[ct]\nfolder = "/data/ct"\nlung_masks = "/data/other/../ct/masks"\n', "lung_masks must be outside"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(Refusal, match=says) as caught:
        init_site(tmp_path / "site", SETTINGS + table)
    assert caught.value.code == "E_SETTINGS_KEY"


@pytest.mark.parametrize(
    "table",
    [
        "[gateway]\nmin_batch_size = 8\nmax_batch_size = 8\nmax_update = 100.0\n",
        "[privacy]\nmax_delta = 0.001\n",
        "[gateway]\nmax_rounds_a_month = 10\nmax_pretraining_rounds_a_month = 20\n",  # the smaller limit holds
        '[ct]\nlung_masks = "ct-masks"\n',
        '[ct]\nfolder = "ct"\nlung_masks = "ct/../masks"\n',
        '[ct]\nfolder = "/data/ct"\nlung_masks = "masks"\n',
    ],
)
def test_settings_at_their_limits_are_accepted(tmp_path: Path, table: str) -> None:
    init_site(tmp_path / "site", SETTINGS + table)


@pytest.mark.parametrize("content", [None, b"", b"k" * 31], ids=["missing", "empty", "short"])
def test_missing_or_damaged_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """With an empty key, anyone could compute the pseudonyms."""
    init_site(tmp_path, SETTINGS)
    key = tmp_path / "keys" / "pseudonym.key"
    key.unlink() if content is None else key.write_bytes(content)
    assert code_of(Site.open(tmp_path).pseudonym, "SYNTHETIC-1") == "E_SITE_KEY"
    assert code_of(Site.open(tmp_path).split, "SYNTHETIC-1") == "E_SITE_KEY"


def test_paths_are_relative_to_the_source_and_sites_do_not_share_defaults(tmp_path: Path) -> None:
    """The table [ct] is absent. Its default value must not be shared between sites."""
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


def test_any_text_is_accepted_as_an_identifier(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS)
    assert (
        len({site.pseudonym(text) for text in ("", " ", "é", "e\N{COMBINING ACUTE ACCENT}", "|", "a|b", "0", "00")})
        == 8
    )


def test_splits_have_the_expected_proportions_and_are_stable(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS, key=b"k" * 32)
    splits = [site.split(patient) for patient in PATIENTS]
    assert splits.count("test") / len(splits) == pytest.approx(0.25, abs=0.02)
    assert splits.count("validation") / len(splits) == pytest.approx(0.15, abs=0.02)
    assert splits.count("train") / len(splits) == pytest.approx(0.60, abs=0.025)
    assert [Site.open(tmp_path).split(patient) for patient in PATIENTS] == splits


def test_split_is_independent_of_the_pseudonym(tmp_path: Path) -> None:
    site = init_site(tmp_path, SETTINGS, key=b"k" * 32)
    low = [site.split(p) for p in PATIENTS if int(site.pseudonym(p)[:8], 16) < 2**31]
    assert low.count("test") / len(low) == pytest.approx(0.25, abs=0.03)


def test_lines_of_another_format_are_named_as_such(tmp_path: Path) -> None:
    """As when `format` of the template is changed and the lines for CSV are left in."""
    path = tmp_path / "site.toml"
    path.write_text("""[site]
name = "north"
[laboratory]
format = "hl7"
file = "messages"
separator = ","
patient_id = "patient_id"
weeks = 1
[outcomes]
file = "outcomes.csv"
""")
    with pytest.raises(Refusal) as refused:
        Site.open(tmp_path)
    assert refused.value.says.endswith(
        'format = "hl7" in [laboratory] has no such lines, remove them: separator, patient_id, weeks'
    )


LABORATORY, OUTCOMES = '[laboratory]\nfile = "pcr.csv"\n', '[outcomes]\nfile = "outcomes.csv"\n'
KEEPS = '[site]\nname = "ward"\nunlabelled_patients = true\n'


def test_site_needs_labels_unless_it_keeps_patients_without_labels(tmp_path: Path) -> None:
    assert not init_site(tmp_path / "ct", KEEPS).settings.has_labels
    assert init_site(tmp_path / "all", KEEPS + LABORATORY + OUTCOMES).settings.has_labels
    assert init_site(tmp_path / "file", KEEPS + '[labels]\nfile = "labels.csv"\n').settings.has_labels
    with pytest.raises(Refusal, match="unlabelled_patients = true"):
        init_site(tmp_path / "none", '[site]\nname = "ward"\n')


@pytest.mark.parametrize(
    "tables",
    [
        LABORATORY,
        OUTCOMES,
        LABORATORY + '[labels]\nfile = "labels.csv"\n',
        LABORATORY + OUTCOMES + '[labels]\nfile = "labels.csv"\n',
        '[fhir]\nurl = "https://fhir.example"\ntoken_file = "keys/token"\n',
    ],
)
def test_half_of_the_labels_is_refused_also_where_patients_without_labels_are_kept(tmp_path: Path, tables: str) -> None:
    assert code_of(init_site, tmp_path, KEEPS + tables) == "E_SETTINGS_KEY"


def test_template_for_chest_ct_only_has_no_labels_and_the_other_settings_of_the_template(tmp_path: Path) -> None:
    usual = init_site(tmp_path / "usual", site_settings(None, name="ward")).settings.model_dump()
    text = site_settings(None, name="ward", ct_only=True)
    without = init_site(tmp_path / "ct", text).settings.model_dump()
    assert [line.removeprefix("# ") for line in text.splitlines()].count("[laboratory]") == 1
    usual["site"]["unlabelled_patients"] = True
    usual["laboratory"] = usual["outcomes"] = None
    usual["ct"]["folder"] = without["ct"]["folder"]
    assert without == usual


SERVER = '[server]\naddress = "old.example:1"\nproxy = "http://proxy.example:3128"\n'
TRAINING = "[training]\nthreads = 2\n"


@pytest.mark.parametrize("tables", ["", SERVER, TRAINING, SERVER + TRAINING, "training.threads = 2\n"])
@pytest.mark.parametrize("head", ["[site]", "[ site ]  # ours", "# [site]\n[site]"])
@pytest.mark.parametrize(("server", "threads"), [("", 0), ("new.example:8443", 0), ("", 3), ("[::1]:8443", 3)])
def test_settings_of_a_hospital_are_kept_but_for_what_is_given(
    tmp_path: Path, tables: str, head: str, server: str, threads: int
) -> None:
    if tables.startswith("training") and threads:
        return  # refused: see test_value_is_not_set_where_the_text_would_mean_something_else
    text = SETTINGS.replace("[site]", head)
    text = tables + text if tables.startswith("training") else text + tables
    source = tmp_path / "hôpital 🏥"
    source.mkdir()
    (source / "site.toml").write_text(text, encoding="utf-8")
    wanted = tomllib.loads(text)
    wanted["site"]["source"] = str(source)
    if server:
        wanted.setdefault("server", {})["address"] = server
    if threads:
        wanted.setdefault("training", {})["threads"] = threads
    made = site_settings(source, name="other", server=server, threads=threads)
    assert tomllib.loads(made) == wanted
    assert init_site(tmp_path / "site", made).settings.ct.folder == source / "ct"


@pytest.mark.parametrize(("written", "meant"), [("/data/covid", "/data/covid"), ("../exports", "{}/exports")])
def test_source_of_a_hospitals_settings_is_relative_to_them(tmp_path: Path, written: str, meant: str) -> None:
    (tmp_path / "hospital").mkdir()
    (tmp_path / "hospital" / "site.toml").write_text(SETTINGS.replace("[lab", f'source = "{written}"\n[lab', 1))
    site = init_site(tmp_path / "site", site_settings(tmp_path / "hospital", name="other"))
    assert site.settings.ct.folder == Path(meant.format(tmp_path)) / "ct"


def test_errors_of_a_hospitals_settings_name_its_own_lines(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[site]\nname = ward\n")
    with pytest.raises(Refusal, match="at line 2") as refused:
        site_settings(tmp_path, name="other")
    assert refused.value.code == "E_SETTINGS_SYNTAX"


def test_site_with_chest_ct_only_reads_no_volume_files(tmp_path: Path) -> None:
    """Their names may be anything: ten scans of one person would count as ten patients."""
    (tmp_path / "site" / "ct").mkdir(parents=True)
    save(image(np.zeros((20, 24, 24))), tmp_path / "site" / "ct" / "one.nii.gz")
    assert code_of(read_series_list, init_site(tmp_path / "site", KEEPS)) == "E_NO_IMAGES"
