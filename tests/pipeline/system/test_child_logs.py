"""Logs of child processes: followed line by line, and limited while they are written."""

import errno
import tracemalloc
from pathlib import Path

import pytest

from pipeline.system.child_logs import Tail, cut, put_aside


def test_tail_returns_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)
    assert tail.lines() == []
    with path.open("a") as log:
        log.write("one\ntw")
        log.flush()
        assert tail.lines() == ["one"]
        log.write("o\n" + "x" * 10_000 + "\n")
        log.flush()
    assert tail.lines() == ["two", "x" * 500]
    assert Tail(tmp_path / "not there").lines() == []


def test_flooded_log_uses_little_memory_and_is_followed_again(tmp_path: Path) -> None:
    path = tmp_path / "client.log"
    path.touch()
    tail = Tail(path)
    path.write_bytes(b"x" * 10_000_000)
    tracemalloc.start()
    assert tail.lines() == []
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 5_000_000
    assert kept_bytes < 100_000
    with path.open("ab") as log:
        log.write(b"\nINFO done\n")
    assert tail.lines()[-1] == "INFO done"


def test_log_that_was_rotated_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "door.log"
    path.write_text("old " * 100 + "\n")
    tail = Tail(path)
    path.rename(tmp_path / "door.log.1")
    path.write_text("new\n")
    assert tail.lines() == ["new"]


def test_long_log_is_renamed_before_a_start(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    assert put_aside(path, max_bytes=5) == path
    path.write_text("12345")
    assert put_aside(path, max_bytes=5).exists()
    path.write_text("123456")
    assert not put_aside(path, max_bytes=5).exists()
    assert (tmp_path / "node.log.1").read_text() == "123456"


def test_long_log_is_cut_while_a_process_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    tail = Tail(path)
    with path.open("ab", buffering=0) as log:
        log.write(b"one\n")
        cut([path, tmp_path / "not there"], max_bytes=8)
        assert tail.lines() == ["one"]
        log.write(b"two\nthree\nfour\n")
        assert tail.lines() == ["two", "three", "four"]
        cut([path], max_bytes=8)
        assert path.read_bytes() == b""
        log.write(b"5\n")
        assert path.read_bytes() == b"5\n"  # not behind a hole of zeros
        assert tail.lines() == ["5"]
    old = tmp_path / "gateway.log.1"
    assert old.read_bytes() == b"ee\nfour\n"
    assert old.stat().st_mode & 0o777 == 0o600


def test_log_is_cut_although_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "node.log"
    path.write_bytes(b"x" * 10)
    monkeypatch.setattr("pipeline.system.child_logs.shutil.copyfileobj", full)
    cut([path], max_bytes=8)
    assert path.read_bytes() == b"" and not (tmp_path / "node.log.1").exists()
