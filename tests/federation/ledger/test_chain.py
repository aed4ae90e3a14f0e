"""Every change of the ledger is detected, and an incomplete write is distinguished from a forgery."""

import hashlib
import json
import os
import random
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from federation.ledger.chain import EMPTY, PASSED, Entry, Head, Ledger, read_lines, verify
from models.refusal import Refusal

MUTATIONS = 1000


def entry(number: int, **changes: Any) -> Entry:
    made = Entry(
        run=str(10**18 + number // 7),
        round=number % 7,
        direction="out" if number % 2 else "in",
        kind="train",
        bytes=1000 * number,
        digest=f"{number:064x}",
        app="a" * 64,
        policy="b" * 64,
        verdict=PASSED,
    )
    return replace(made, **changes)


def filled(path: Path, lines: int) -> Ledger:
    book = Ledger(path)
    for number in range(1, lines + 1):
        book.append(entry(number))
    return book


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger" / "ledger.jsonl"


def code(action: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refused:
        action()
    return refused.value.code


def test_appended_lines_are_read_in_order(path: Path) -> None:
    book = Ledger(path)
    heads = [book.append(entry(number)) for number in range(1, 6)]
    lines = list(read_lines(path))
    assert [Head(line.number, line.sha256) for line in lines] == heads
    assert [line.prev for line in lines] == ["", *(head.sha256 for head in heads[:-1])]
    for number, line in enumerate(lines, start=1):
        assert asdict(entry(number)).items() <= asdict(line).items()
        assert line.time.endswith("+00:00")
    assert book.head == verify(path) == heads[-1]


def test_ledger_is_readable_only_by_its_owner(path: Path) -> None:
    filled(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_missing_ledger_counts_as_empty(path: Path) -> None:
    assert list(read_lines(path)) == []
    assert verify(path) == EMPTY
    assert Ledger(path).head == EMPTY


def test_reopened_ledger_continues_its_chain(path: Path) -> None:
    head = filled(path, 3).head
    book = Ledger(path)
    assert book.head == head
    assert book.append(entry(4)).lines == 4
    assert verify(path).lines == 4


def test_two_writers_append_to_one_chain(path: Path) -> None:
    one, other = Ledger(path), Ledger(path)
    for number in range(10):
        (one if number % 3 else other).append(entry(number))
    assert verify(path).lines == 10


def test_threads_append_to_one_chain(path: Path) -> None:
    book = Ledger(path)
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(lambda number: book.append(entry(number)), range(80)))
    assert verify(path, heads).lines == 80
    assert {head.lines for head in heads} == set(range(1, 81))


def test_entry_with_any_characters_is_one_line(path: Path) -> None:
    odd = 'a\nb\r\u2028\x1b[2J"\\ü\ud800'.encode("utf-8", "replace").decode()
    long = "x" * 20_000
    book = Ledger(path)
    book.append(entry(1, kind=odd))
    book.append(entry(2, kind=long))
    assert Ledger(path).head == book.head  # the last line is longer than the first block read from the end
    book.append(entry(3))
    assert [line.kind for line in read_lines(path)] == [odd, long, "train"]
    assert len(path.read_bytes().splitlines()) == 3


# --- forgery ----------------------------------------------------------------------------------------------


def canonical(content: dict[str, Any]) -> bytes:
    """A line in the documented format, without line ending. Ledgers of all releases have this format."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def forged(line: bytes, **changes: Any) -> bytes:
    """A line with changed fields and a matching hash."""
    content = {**json.loads(line), **changes}
    del content["sha256"]
    return canonical(content | {"sha256": hashlib.sha256(canonical(content)).hexdigest()}) + b"\n"


def mutate(lines: list[bytes], dice: random.Random) -> tuple[str, list[bytes]]:
    """Change the lines as a forger without the server's heads would. Returns the kind of change and the new lines."""
    kind = dice.choice(
        ["byte", "cut", "more", "respell", "delete", "swap", "repeat", "move", "insert", "edit", "forge"]
    )
    k = dice.randrange(len(lines) - 1)  # not the last line: other tests cover a truncated end
    out = list(lines)
    place = dice.randrange(len(out[k]))
    if kind == "byte":
        other = dice.choice([byte for byte in range(256) if byte != out[k][place]])
        out[k] = out[k][:place] + bytes([other]) + out[k][place + 1 :]
    elif kind == "cut":
        out[k] = out[k][:place] + out[k][place + 1 :]
    elif kind == "respell":  # the same content in another JSON form
        content = json.loads(out[k])
        out[k] = dice.choice([json.dumps(content), json.dumps(dict(reversed(content.items())))]).encode() + b"\n"
    elif kind == "more":
        out[k] = out[k][:place] + dice.choice([b" ", b"\n", b"0", b"\0", b"{}\n"]) + out[k][place:]
    elif kind == "delete":
        del out[k : dice.randrange(k + 1, len(lines))]
    elif kind == "swap":
        other = dice.choice([n for n in range(len(lines)) if n != k])
        out[k], out[other] = out[other], out[k]
    elif kind == "repeat":
        out.insert(dice.randrange(len(lines) + 1), out[k])
    elif kind == "move":
        line = out.pop(k)
        out.insert(dice.choice([n for n in range(len(lines)) if n != k]), line)
    elif kind == "insert":
        # A line that fits its predecessor and has the number of the line that it displaces.
        out.insert(k, forged(out[k], verdict="E_FORGED"))
    elif kind == "edit":
        field, value = dice.choice([("bytes", 1), ("verdict", "E_OTHER"), ("round", 99), ("time", "2020-01-01")])
        out[k] = canonical({**json.loads(out[k]), field: value}) + b"\n"
    else:
        field, value = dice.choice([("bytes", 1), ("verdict", "E_OTHER"), ("app", ""), ("prev", ""), ("number", 7)])
        out[k] = forged(out[k], **{field: value})
    return kind, out


def test_every_change_is_detected(path: Path) -> None:
    filled(path, 12)
    lines = path.read_bytes().splitlines(keepends=True)
    dice, done = random.Random(20260), dict[str, int]()
    while sum(done.values()) < MUTATIONS:
        kind, changed = mutate(lines, dice)
        if b"".join(changed) == b"".join(lines):
            continue
        path.write_bytes(b"".join(changed))
        with pytest.raises(Refusal) as refused:
            verify(path)
        assert refused.value.code == "E_LEDGER_BROKEN", kind
        now = b"".join(changed).splitlines(keepends=True)
        first = next((n for n, (a, b) in enumerate(zip(lines, now, strict=False), 1) if a != b), len(lines) + 1)
        # A line forged with a matching hash is valid by itself. The next line reveals the change.
        assert int(refused.value.numbers["line"]) - first in ((0, 1) if kind in ("forge", "insert") else (0,)), kind
        done[kind] = done.get(kind, 0) + 1
    assert min(done.values()) > 50
    assert len(done) == 11


def test_changed_last_line_is_detected(path: Path) -> None:
    filled(path, 3)
    good = path.read_bytes()
    for place in range(good[:-1].rindex(b"\n") + 1, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert code(lambda: verify(path)) in ("E_LEDGER_BROKEN", "E_LEDGER_INCOMPLETE")
    with pytest.raises(Refusal) as refused:
        Ledger(path)
    assert (refused.value.code, refused.value.numbers["line"]) == ("E_LEDGER_BROKEN", 3)


@pytest.mark.parametrize("kept", range(10))
def test_truncated_ledger_is_detected_by_the_heads_known_to_the_server(path: Path, kept: int) -> None:
    book = Ledger(path)
    heads = [book.append(entry(number)) for number in range(10)]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:kept]))
    assert verify(path).lines == kept  # the remaining lines are valid
    with pytest.raises(Refusal) as refused:
        verify(path, heads[3:])
    assert refused.value.code == "E_LEDGER_CUT"
    assert refused.value.numbers["line"] == max(kept + 1, 4)
    cut = Ledger(path)
    assert [cut.contains(head) for head in heads] == [head.lines <= kept for head in heads]


def test_rewritten_ledger_is_detected(path: Path) -> None:
    head = filled(path, 5).head
    path.unlink()
    anew = filled(path, 8)
    assert verify(path).lines == 8
    assert code(lambda: verify(path, [head])) == "E_LEDGER_CUT"
    assert not anew.contains(head)


def test_completely_forged_chain_is_detected_by_a_head(path: Path) -> None:
    head = filled(path, 6).head
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = forged(lines[2], bytes=1)
    for k in range(3, 6):
        lines[k] = forged(lines[k], prev=json.loads(lines[k - 1])["sha256"])
    path.write_bytes(b"".join(lines))
    assert verify(path).lines == 6
    assert code(lambda: verify(path, [head])) == "E_LEDGER_CUT"
    assert not Ledger(path).contains(head)


def test_ledger_truncated_while_open_accepts_no_entries(path: Path) -> None:
    book = filled(path, 4)
    os.truncate(path, path.stat().st_size - 10)
    before = path.read_bytes()
    assert code(lambda: book.append(entry(5))) == "E_LEDGER_BROKEN"
    assert path.read_bytes() == before
    path.unlink()
    assert code(lambda: book.append(entry(5))) == "E_LEDGER_BROKEN"


# --- heads ------------------------------------------------------------------------------------------------


def test_head_is_found_without_reading_the_whole_ledger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Ledger(path)
    monkeypatch.setattr("federation.ledger.chain.os.fsync", lambda handle: None)
    heads = [book.append(entry(number)) for number in range(600)]
    read, real = [], hashlib.sha256  # every line that is read is hashed
    monkeypatch.setattr("federation.ledger.chain.hashlib.sha256", lambda raw: read.append(raw) or real(raw))
    book = Ledger(path)
    assert len(read) == 1
    assert all(book.contains(head) for head in heads)
    assert len(read) < 600 * 25
    assert book.contains(EMPTY)
    assert not book.contains(Head(601, heads[-1].sha256))
    assert not book.contains(Head(5, heads[5].sha256))
    assert not book.contains(Head(0, heads[0].sha256))
    assert not book.contains(Head(-1, ""))


def test_head_of_a_changed_line_is_not_found(path: Path) -> None:
    book = Ledger(path)
    heads = [book.append(entry(number)) for number in range(5)]
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"bytes":1000', b'"bytes":1001')
    path.write_bytes(b"".join(lines))
    assert not Ledger(path).contains(heads[1])


# --- power failures and full disks ------------------------------------------------------------------------


def test_torn_line_is_distinguished_from_a_changed_line_and_moved_away(path: Path) -> None:
    filled(path, 3)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for length in range(1, len(whole) - start, 37):
        torn = whole[start : start + length]
        path.write_bytes(whole[:start] + torn)
        path.with_suffix(".torn").unlink(missing_ok=True)
        assert code(lambda: verify(path)) == "E_LEDGER_INCOMPLETE"
        assert Ledger(path).head.lines == 3
        last = list(read_lines(path))[-1]
        assert (last.kind, last.direction, last.verdict, last.bytes) == ("torn line", "here", "W_LEDGER_TORN", length)
        assert path.with_suffix(".torn").read_bytes() == torn + b"\n"


@pytest.mark.parametrize("rest", [b"{", b"\0" * 5000])
def test_incomplete_first_line_is_moved_away(path: Path, rest: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(rest)
    assert Ledger(path).append(entry(1)).lines == 2
    assert [line.kind for line in read_lines(path)] == ["torn line", "train"]


def test_line_without_line_ending_counts_as_torn(path: Path) -> None:
    filled(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    Ledger(path)
    assert [line.kind for line in read_lines(path)] == ["train", "torn line"]


@pytest.mark.parametrize("written", [0, 50])
def test_full_disk_is_refused_and_the_ledger_is_unchanged(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    book = filled(path, 2)
    before, head, real = path.read_bytes(), book.head, os.write
    monkeypatch.setattr("federation.ledger.chain.os.write", lambda handle, data: real(handle, data[:written]))
    assert code(lambda: book.append(entry(3))) == "E_LEDGER_WRITE"
    assert path.read_bytes() == before
    assert book.head == head
    monkeypatch.setattr("federation.ledger.chain.os.write", real)
    book.append(entry(3))
    assert verify(path).lines == 3


def test_failed_fsync_is_refused_and_the_ledger_is_unchanged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = filled(path, 2)
    before = path.read_bytes()

    def broken(handle: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr("federation.ledger.chain.os.fsync", broken)
    assert code(lambda: book.append(entry(3))) == "E_LEDGER_WRITE"
    assert path.read_bytes() == before


def test_ledger_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where the folder should be")
    assert code(lambda: Ledger(tmp_path / "ledger" / "ledger.jsonl")) == "E_LEDGER_WRITE"
