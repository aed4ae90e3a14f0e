"""The folder of an answer: apart from the scan's files, and with the files of one answer."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.scoring.answer_folder import NAMES, remove_answer, replacing_answer, require_apart


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A folder of two files; their content does not matter here."""
    folder = tmp_path / "scan"
    (folder / "more").mkdir(parents=True)
    for name in ("0.dcm", "more/1.dcm"):
        (folder / name).write_bytes(b"")
    return folder


def refused(out: Path, series: list[Path], lungs: Path | None = None) -> bool:
    try:
        require_apart(out, series, lungs)
    except Refusal as refusal:
        assert refusal.code == "E_OUT_IS_INPUT" and str(out) not in str(refusal)
        return True
    return False


@pytest.mark.parametrize("place", ["scan", "scan/more", "scan/new/answer", "scan/../scan", "link", "link/new"])
def test_folder_of_the_scan_is_refused(place: str, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(scan)
    assert refused(tmp_path / place, [scan])
    assert refused(tmp_path / place, [tmp_path / "link"])


def test_folder_of_several_named_files_is_refused(scan: Path) -> None:
    files = [scan / "0.dcm", scan / "more" / "1.dcm"]
    assert refused(scan, files) and refused(scan / "new", files)
    assert not refused(scan / "new", files[:1])  # a single file may lie among others, as in the folder of downloads


@pytest.mark.parametrize("place", ["", "new", "scanner", "scan2/scan"])
def test_other_folder_is_accepted(place: str, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "lungs.nii.gz").write_bytes(b"of an earlier answer")
    assert not refused(tmp_path / place, [scan], scan.parent / "mask.nii.gz")
    assert not refused(tmp_path / place, [tmp_path / "nowhere"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_file_that_the_answer_would_replace_is_refused(name: str, link: object, scan: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "out", tmp_path / "mask.nii.gz"
    out.mkdir()
    given.write_bytes(b"")
    if link:
        link(out / name, given)  # type: ignore[operator]
    else:
        given = given.rename(out / name)
    assert refused(out, [scan], given) and refused(out, [given])
    assert refused(out, [scan, given])


@pytest.mark.parametrize("link", [False, True])
def test_voxels_of_a_metaimage_are_not_replaced(link: bool, tmp_path: Path) -> None:
    """They are in a file of their own, which may have any name."""
    header, voxels = tmp_path / "scan.mhd", tmp_path / "score.json"
    header.write_text(f"ObjectType = Image\nElementDataFile = {voxels.name}\n")
    voxels.write_bytes(b"voxels")
    given = header
    if link:
        (tmp_path / "elsewhere").mkdir()
        given = tmp_path / "elsewhere" / "scan.mhd"
        given.symlink_to(header)
    assert refused(tmp_path, [given])
    assert not refused(tmp_path / "out", [given])
    header.write_text("ElementDataFile = missing.raw\n")
    assert not refused(tmp_path, [given])


def test_link_in_the_scan_to_a_file_of_the_answer_is_refused(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "score.json").write_bytes(b"")
    (scan / "more" / "2.dcm").symlink_to(tmp_path / "score.json")
    assert refused(tmp_path, [scan])


def test_new_answer_replaces_all_files_of_the_earlier_one(tmp_path: Path) -> None:
    for name in (*NAMES, "notes.txt"):
        (tmp_path / name).write_text("old")
    with replacing_answer(tmp_path) as folder:
        (folder / NAMES[0]).write_text("new")
        assert (tmp_path / NAMES[0]).read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {NAMES[0]: "new", "notes.txt": "old"}


def test_earlier_answer_stays_if_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_text("old")
    with pytest.raises(Refusal, match="E_REPORT_WRITE"), replacing_answer(tmp_path) as folder:
        (folder / NAMES[1]).write_text("new")
        raise OSError("the disk is full")
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[0]]
    with pytest.raises(Refusal, match="E_REPORT_WRITE"), replacing_answer(tmp_path / NAMES[0]):
        pytest.fail("this is a file")


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.scoring.answer_folder import replacing_answer
with replacing_answer(Path(sys.argv[1])) as folder:
    (folder / "lungs.nii.gz").write_text("of another patient")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("is_answered", [True, False])
def test_what_a_killed_process_left_is_removed(is_answered: bool, tmp_path: Path) -> None:
    ours = {"notes.txt", ".answer-mine.tmp", ".abcdefgh.tmp", ".answer-kept"}
    (tmp_path / "notes.txt").write_text("ours")
    (tmp_path / ".answer-mine.tmp").write_text("a file, not a folder")
    for name in (".abcdefgh.tmp", ".answer-kept"):
        (tmp_path / name).mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("lungs.nii.gz"))) == 1
    if is_answered:
        with replacing_answer(tmp_path) as folder:
            (folder / NAMES[0]).write_text("new")
    else:
        assert remove_answer(tmp_path)
        assert not remove_answer(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == ours | ({NAMES[0]} if is_answered else set())


def test_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    """The second answer waits until the first one is complete, and then replaces it."""

    def second() -> None:
        with replacing_answer(tmp_path) as folder:
            (folder / NAMES[1]).write_text("second")

    with ThreadPoolExecutor(1) as other:
        with replacing_answer(tmp_path) as folder:
            waiting = other.submit(second)
            (folder / NAMES[0]).write_text("first")
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            assert folder.is_dir()
        waiting.result()
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[1]]


def test_answer_is_written_where_folders_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".answer-other.tmp").mkdir()  # its process may be alive
    with replacing_answer(tmp_path) as folder:
        (folder / NAMES[0]).write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {NAMES[0], ".answer-other.tmp"}


def test_what_is_no_file_stays_and_so_does_the_earlier_answer(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_text("earlier")
    os.mkfifo(tmp_path / NAMES[1])
    with pytest.raises(Refusal, match="E_REPORT_WRITE"), replacing_answer(tmp_path) as folder:
        (folder / NAMES[1]).write_text("new")
    with pytest.raises(OSError, match="not a regular file"):
        remove_answer(tmp_path)
    assert (tmp_path / NAMES[1]).is_fifo() and (tmp_path / NAMES[0]).read_text() == "earlier"


def test_removal_touches_only_files_of_an_answer(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("ours")
    (tmp_path / NAMES[0]).symlink_to(target)
    (tmp_path / NAMES[1]).symlink_to(tmp_path / "nowhere")
    assert remove_answer(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"} and target.read_text() == "ours"
    assert not remove_answer(tmp_path) and not remove_answer(tmp_path / "new")
