"""A ledger that was put back from a backup by hand is recognised, however that was done."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.ledger.chain import PASSED, Entry, Ledger, read_lines
from federation.ledger.restored import accept, is_restored, mark_if_copied


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder, after a backup to `backup` and `backup.tar`, and more answers."""
    ledger = tmp_path / "site" / "ledger" / "ledger.jsonl"
    (tmp_path / "site" / "gateway").mkdir(parents=True)
    (tmp_path / "site" / "gateway" / "memory").write_text("spent")
    ledger.parent.mkdir()
    mark_if_copied(ledger)
    answer(ledger, 3)
    shutil.copytree(tmp_path / "site", tmp_path / "backup")
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        tar.add(tmp_path / "site", "site")
    answer(ledger, 5)
    return tmp_path / "site"


def answer(ledger: Path, times: int) -> None:
    for _ in range(times):
        Ledger(ledger).append(Entry("run", 1, "out", "train", 1, "", "", "", PASSED))


def by_tar(site: Path) -> None:
    """As `tar x` does: it deletes each file before it writes it."""
    with tarfile.open(site.with_name("backup.tar")) as tar:
        for member in tar:
            if member.isfile():
                (site.parent / member.name).unlink()
            tar.extract(member, site.parent, filter="data")


def one_file(site: Path) -> None:
    file = Path("ledger", "ledger.jsonl")
    (site / file).unlink()
    shutil.copy2(site.with_name("backup") / file, site / file)


def ledger_folder(site: Path) -> None:
    shutil.rmtree(site / "ledger")
    shutil.copytree(site.with_name("backup") / "ledger", site / "ledger")


def all_of_it(site: Path) -> None:
    shutil.rmtree(site)
    shutil.copytree(site.with_name("backup"), site)


@pytest.mark.parametrize("put_back", [by_tar, one_file, ledger_folder, all_of_it], ids=lambda way: way.__name__)
def test_ledger_that_was_put_back_is_recognised(site: Path, put_back: Callable[[Path], None]) -> None:
    ledger = site / "ledger" / "ledger.jsonl"
    put_back(site)
    mark_if_copied(ledger)
    assert is_restored(read_lines(ledger))
    accept(ledger, "the node was stopped before the backup")
    mark_if_copied(ledger)
    assert not is_restored(read_lines(ledger))


def test_ledger_that_stays_in_its_place_is_not_marked(site: Path) -> None:
    """Nor if its place was written by a version that knew no generation."""
    ledger = site / "ledger" / "ledger.jsonl"
    place = ledger.with_name("place.json")
    for _ in range(2):
        mark_if_copied(ledger)
        answer(ledger, 1)
    place.write_text(f'{{"inode": {ledger.stat().st_ino}}}')
    mark_if_copied(ledger)
    assert not is_restored(read_lines(ledger))
    assert "generation" in place.read_text()


@pytest.mark.parametrize("content", ["", "7", "[]", "{}", '{"inode": "x"}', '{"inode": 1, "generation": 2}'])
def test_place_that_says_nothing_counts_as_a_copy(site: Path, content: str) -> None:
    ledger = site / "ledger" / "ledger.jsonl"
    ledger.with_name("place.json").write_text(content)
    mark_if_copied(ledger)
    assert is_restored(read_lines(ledger))
