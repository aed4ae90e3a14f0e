"""Every store that this version writes carries the number of its format, and a newer one is refused with a code."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from federation.enrolment import registry
from federation.enrolment.registry import open_registry
from federation.secure_aggregation import store as masked_rounds
from federation.server.start import init_server
from federation.strategy import checkpoint
from federation.strategy.checkpoint import State, load_latest, save
from federation.superlink.control import read_server_config
from models.description import Description
from models.refusal import Refusal
from pipeline.clinic import database as clinic_database
from pipeline.clinic.settings import Clinic, init_clinic
from pipeline.cohort.store import SCHEMA_VERSION, Cohort
from pipeline.pacs import pull_log
from pipeline.records import fhir_store
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.system.folder_format import FILE, FORMATS
from pipeline.system.sqlite_format import SqliteFormat
from pipeline.training import privacy_budget
from tests.helpers.killed import killed_copies


def site_in(folder: Path) -> Site:
    return Site.open(folder) if folder.exists() else init_site(folder, site_settings(None, name="north"))


@dataclass(frozen=True)
class Kind:
    """A kind of SQLite file: where it is below a folder, its format, and what opens it for writing."""

    file: str
    of: SqliteFormat
    open: Callable[[Path], object]


def open_masked_rounds(folder: Path) -> None:
    masked_rounds.Store(folder, folder / "witness").close()


def open_sites(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with open_registry(folder / registry.FILE):
        pass


def open_resources(folder: Path) -> None:
    with fhir_store.ResourceStore(folder / "resources.sqlite"):
        pass


KINDS = [
    Kind(masked_rounds.FILE, masked_rounds.FORMAT, open_masked_rounds),
    Kind(registry.FILE, registry.FORMAT, open_sites),
    Kind("resources.sqlite", fhir_store.FORMAT, open_resources),
    Kind(clinic_database.FILE, clinic_database.FORMAT, lambda folder: clinic_database.Database(folder).close()),
]


def number_of(file: Path) -> int:
    with closing(sqlite3.connect(file)) as database:
        number: int = database.execute("PRAGMA user_version").fetchone()[0]
        return number


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.file)
def test_sqlite_file_carries_its_format_and_a_newer_one_is_refused_unchanged(kind: Kind, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    kind.open(folder)
    file = folder / kind.file
    assert number_of(file) == kind.of.version > 0
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(f"PRAGMA user_version = {kind.of.version + 1}")
    with pytest.raises(Refusal, match="E_FORMAT_NEWER"):
        kind.open(folder)
    assert number_of(file) == kind.of.version + 1


@pytest.mark.parametrize("of", [*(kind.of for kind in KINDS), privacy_budget.FORMAT])
def test_each_earlier_format_has_a_migration(of: SqliteFormat) -> None:
    assert sorted(of.steps) == list(range(1, of.version))


def test_guide_names_the_format_of_each_database() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "upgrading.md").read_text()
    rows = re.findall(r"^\| [^|]*`(?:\w+/)*(\w+\.sqlite)` \| .*`user_version`, (\d+) ", page, re.M)
    assert {name: int(number) for name, number in rows} == {
        masked_rounds.FILE: masked_rounds.FORMAT.version,
        privacy_budget.FILE: privacy_budget.FORMAT.version,
        "resources.sqlite": fhir_store.FORMAT.version,
        "sites.sqlite": registry.FORMAT.version,
        clinic_database.FILE: clinic_database.FORMAT.version,
        "cohort.sqlite": SCHEMA_VERSION,
        "journal.sqlite": pull_log.SCHEMA_VERSION,
    }


def test_cohort_carries_its_format_and_a_newer_one_is_not_read(tmp_path: Path) -> None:
    """It is no migration: an ingest makes it again from the hospital's sources, in either direction."""
    site = site_in(tmp_path / "site")
    Cohort(site).__exit__(None, None, None)
    file = site.cohort_folder / "cohort.sqlite"
    assert number_of(file) == SCHEMA_VERSION
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(Refusal, match="E_COHORT_FILE"):
        Cohort.read(site)


# --- folders, for all files without a number of their own: ledger, approvals, what the gateway remembers, runs ---


def make_server(folder: Path) -> None:
    init_server(folder)


@pytest.mark.parametrize(
    ("kind", "make", "reopen"),
    [
        ("site", site_in, Site.open),
        ("server", make_server, read_server_config),
        ("clinic", init_clinic, Clinic.open),
    ],
)
def test_folder_carries_its_format_and_a_newer_one_is_refused(
    kind: str, make: Callable[[Path], object], reopen: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    make(folder)
    reopen(folder)
    stamp = json.loads((folder / FILE).read_text())
    assert stamp == {"format": FORMATS[kind], "software": version("fedthorax")}  # type: ignore[index]
    (folder / FILE).write_text(json.dumps({**stamp, "format": stamp["format"] + 1}))
    with pytest.raises(Refusal, match="E_FORMAT_NEWER"):
        reopen(folder)


# --- checkpoints and releases -----------------------------------------------------------------------------


STATE = State(round=1, arrays={"w": np.ones(3)}, buffers={}, memory={}, history=[], about={"study": "a"})


def rewritten(file: Path, text: dict[str, str]) -> None:
    """Write a checkpoint with other text, under the name that its content demands."""
    data = safetensors.numpy.save(safetensors.numpy.load_file(file), text)
    file.unlink()
    digest = hashlib.sha256(data).hexdigest()
    (file.parent / f"{file.name[:13]}{digest}.safetensors").write_bytes(data)


def text_of(file: Path) -> dict[str, str]:
    with safetensors.safe_open(file, framework="numpy") as content:
        return dict(content.metadata())


def test_checkpoint_carries_its_format(tmp_path: Path) -> None:
    assert list(text_of(save(tmp_path, STATE))) == [checkpoint.FORMAT]


def test_newer_checkpoint_is_refused_and_not_replaced_by_an_older_one(tmp_path: Path) -> None:
    save(tmp_path, STATE)
    file = save(tmp_path, State(**{**vars(STATE), "round": 2}))
    rewritten(file, {f"{checkpoint.FORMAT}-2": text_of(file)[checkpoint.FORMAT]})
    with pytest.raises(Refusal, match="E_FORMAT_NEWER"):
        load_latest(tmp_path)


def test_release_carries_its_format() -> None:
    assert Description.model_fields["format"].default == 1


# --- kill -9 in the middle of the migrations that exist ---------------------------------------------------


def open_old_rounds(file: Path) -> None:
    open_masked_rounds(file.parent)


def open_old_sites(file: Path) -> None:
    open_sites(file.parent)


@pytest.mark.slow
def test_migration_of_masked_rounds_that_is_killed_forgets_no_sum(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    open_masked_rounds(folder)
    file = folder / masked_rounds.FILE
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.executescript(
            "ALTER TABLE runs DROP COLUMN study;"
            "DROP TABLE summed; DROP TABLE revealed; CREATE TABLE revealed (model TEXT PRIMARY KEY) STRICT;"
            f"INSERT INTO revealed VALUES ('{'a' * 64}'); PRAGMA user_version = 1;"
        )
    files = killed_copies(f"{__name__}:open_old_rounds", file, tmp_path / "killed")
    assert len(files) > 10
    for each in files:
        store = masked_rounds.Store(each.parent, each.parent / "witness")
        assert store.was_revealed("a" * 64, "train") and not store.was_revealed("b" * 64, "train")
        store.close()


@pytest.mark.slow
def test_numbering_of_the_registry_that_is_killed_forgets_no_site(tmp_path: Path) -> None:
    file = tmp_path / "old" / registry.FILE
    open_sites(file.parent)
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("INSERT INTO sites VALUES ('north', 100)")
        database.execute("PRAGMA user_version = 0")
    for each in killed_copies(f"{__name__}:open_old_sites", file, tmp_path / "killed"):
        with open_registry(each) as connection:
            assert connection.execute("SELECT * FROM sites").fetchall() == [("north", 100)]
        assert number_of(each) == registry.FORMAT.version
