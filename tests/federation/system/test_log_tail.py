"""A log that other processes write is followed line by line."""

import tracemalloc
from pathlib import Path

from federation.system.log_tail import Tail


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
