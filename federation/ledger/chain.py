"""A site's ledger: every decision about incoming and outgoing data, as one line of a hash-chained file.

SITE_DIR/ledger/ledger.jsonl   one JSON object per line; each holds the hash of the previous line
SITE_DIR/ledger/ledger.torn    incomplete last lines, as a power failure leaves them

Each line is the canonical JSON of its fields (keys sorted, no spaces, ASCII), so that even an added space is detected.
The chain proves that the lines are unchanged and in order, and that none between them is missing. It cannot prove that
no line is missing at the end, nor that the whole file was not rewritten. Therefore the server keeps the ledger's head
of each round (`Head`), and the gateway and `node ledger --record` compare.
"""

import bisect
import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from federation.ledger import reasons
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.atomic_files import sync_folder

PASSED = "passed"
_TAIL_BYTES = 4096  # of the file's end, read first to find the last line; a line has about 600
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=_STRICT)
class Entry:
    """One decision. `direction` is "here" for events that concern only the site, such as an approval or a torn line.

    `run` and `round`: as the server numbers them ("" and None outside a run). `kind`: what it was, for example "app",
    "train", or "error" with the code that the server received, as in "error E_SITE_FAILED" (in ledgers of earlier
    releases: only "error"). `bytes`: its size. `digest`: its SHA-256. `app`: the SHA-256 of the run's app. `policy`:
    the SHA-256 of the rules that were applied. `verdict`: `PASSED`, or the code of the reason.
    """

    run: str
    round: int | None
    direction: Literal["in", "out", "here"]
    kind: str
    bytes: int
    digest: str
    app: str
    policy: str
    verdict: str


@dataclass(frozen=True, config=_STRICT)
class Line(Entry):
    """A line of the file: an entry with its number (1, 2, ...), its time (UTC) and its link in the chain."""

    number: int
    time: str
    prev: str
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Head:
    """The number of lines of a ledger, and the hash of its last line; 0 and "" if it is empty."""

    lines: int
    sha256: str


EMPTY = Head(0, "")
_ENTRY = tuple(field.name for field in fields(Entry))
_LINE = TypeAdapter(Line)


def ledger_file(site: Site) -> Path:
    """Return the path of a site's ledger."""
    return site.folder / "ledger" / "ledger.jsonl"


class Ledger:
    """A ledger for writing. Several threads and processes may write: each line is written under the file's lock."""

    def __init__(self, path: Path) -> None:
        """Open or create the ledger. An incomplete last line is moved to another file, and the ledger records this.

        Raises Refusal: E_LEDGER_BROKEN if the last line was changed (`verify` checks all lines), E_LEDGER_WRITE.
        """
        self.path = path
        self._size, self._head = 0, EMPTY
        with self._locked() as file:
            self._catch_up(file)

    @property
    def head(self) -> Head:
        """The head after the last line that this object has written or read."""
        return self._head

    def append(self, entry: Entry) -> Head:
        """Append one line, and return when it is on disk.

        Raises Refusal: E_LEDGER_WRITE, and then the recorded action must not take place; E_LEDGER_BROKEN if the file
        was cut in the meantime.
        """
        with self._locked() as file:
            self._catch_up(file)
            return self._write(file, entry)

    def contains(self, head: Head) -> bool:
        """Tell whether the ledger holds a line of this number with this hash; true for an empty head.

        A binary search finds the line, so that even a ledger of many years answers quickly.
        """
        if head == EMPTY:
            return True
        with self._locked() as file:
            self._catch_up(file)
            line = _find(file, self._size, head.lines)
            return line is not None and line.sha256 == head.sha256

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _open(self.path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            raise Refusal(reasons.LEDGER_WRITE, private=str(error)) from error

    def _catch_up(self, file: BinaryIO) -> None:
        """Read what other processes have written since the last call, and repair a torn last line."""
        size = os.fstat(file.fileno()).st_size
        if size == self._size:
            return
        if size < self._size:
            raise Refusal(reasons.LEDGER_BROKEN, line=self._head.lines, private=f"{self.path} is shorter than before")
        end, last = _last_line(file, size)
        if last:
            line = _read(last)
            if line is None:
                file.seek(0)
                raise Refusal(reasons.LEDGER_BROKEN, line=file.read(end).count(b"\n"), private=str(self.path))
            self._head = Head(line.number, line.sha256)
        self._size = end
        if end < size:
            self._set_aside(file, end, size)

    def _set_aside(self, file: BinaryIO, end: int, size: int) -> None:
        file.seek(end)
        torn = file.read(size - end)
        with _open(self.path.with_suffix(".torn")) as aside:
            aside.write(torn + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        file.truncate(end)
        digest = hashlib.sha256(torn).hexdigest()
        self._write(file, Entry("", None, "here", "torn line", len(torn), digest, "", "", reasons.LEDGER_TORN.code))

    def _write(self, file: BinaryIO, entry: Entry) -> Head:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = asdict(entry) | {"number": self._head.lines + 1, "time": now, "prev": self._head.sha256}
        sha256 = _hash(content)
        data = _canonical(content | {"sha256": sha256}) + b"\n"
        try:
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            if self._head == EMPTY:
                sync_folder(self.path.parent)
        except OSError:
            os.ftruncate(file.fileno(), self._size)  # half a line, or a whole line that was not confirmed to a caller
            raise
        self._size += len(data)
        self._head = Head(self._head.lines + 1, sha256)
        return self._head


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the ledger's lines in order, each checked against the chain. A missing file is empty.

    Raises Refusal: E_LEDGER_BROKEN with the number of the first line that was changed, removed, moved or inserted;
    E_LEDGER_INCOMPLETE if the last line is incomplete, as a power failure leaves it.
    """
    before = EMPTY
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # wait for a line that is being written
            size = os.fstat(file.fileno()).st_size
            fcntl.flock(file, fcntl.LOCK_UN)
            while file.tell() < size:
                raw = file.readline()
                if not raw.endswith(b"\n"):
                    raise Refusal(reasons.LEDGER_INCOMPLETE, private=str(path))
                line = next_line(raw, before)
                if line is None:
                    raise Refusal(reasons.LEDGER_BROKEN, line=before.lines + 1, private=str(path))
                yield line
                before = Head(line.number, line.sha256)
    except FileNotFoundError:
        return


def next_line(raw: bytes, before: Head) -> Line | None:
    """Parse the line that follows `before`; None unless it is this line, byte by byte as `Ledger` wrote it."""
    line = _read(raw)
    return line if line and (line.number, line.prev) == (before.lines + 1, before.sha256) else None


def verify(path: Path, known: Iterable[Head] = ()) -> Head:
    """Check every line, and that the ledger contains each head of `known`, as the server received it; return its head.

    Raises Refusal: those of `read_lines`; E_LEDGER_CUT if a known head is missing.
    """
    wanted = set(known) - {EMPTY}
    head = EMPTY
    for line in read_lines(path):
        head = Head(line.number, line.sha256)
        wanted.discard(head)
    if wanted:
        raise Refusal(reasons.LEDGER_CUT, line=min(missing.lines for missing in wanted), private=str(path))
    return head


# --- lines of a file --------------------------------------------------------------------------------------


def _canonical(content: dict[str, object]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _hash(content: dict[str, object]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _read(raw: bytes) -> Line | None:
    """Parse a line; None unless it is exactly, byte by byte, what `Ledger` writes, and its hash is right."""
    try:
        line = _LINE.validate_json(raw)
    except ValidationError:
        return None
    content = asdict(line)
    if raw != _canonical(content) + b"\n" or content.pop("sha256") != _hash(content):
        return None
    return line


def _last_line(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Return where the last complete line ends, and that line (empty if there is none). Reads from the end."""
    back = _TAIL_BYTES
    while True:
        file.seek(max(0, size - back))
        block = file.read(size - file.tell())
        end = block.rfind(b"\n") + 1
        start = block.rfind(b"\n", 0, max(0, end - 1)) + 1
        if start or back >= size:
            return size - len(block) + end, block[start:end]
        back *= 2


def _find(file: BinaryIO, size: int, number: int) -> Line | None:
    """Return the line of this number; None if it is missing, or if a line read during the search is damaged."""

    def line_from(offset: int) -> Line | None:
        """Return the first line that begins at or after `offset`."""
        file.seek(max(0, offset - 1))
        if offset:
            file.readline()  # the rest of the previous line
        return _read(file.readline())

    def number_from(offset: int) -> int:
        line = line_from(offset)
        return line.number if line else sys.maxsize

    line = line_from(bisect.bisect_left(range(size), number, key=number_from))
    return line if line and line.number == number else None


def _open(path: Path) -> BinaryIO:
    """Open a file for reading and appending; create it if necessary, accessible only to its owner."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
