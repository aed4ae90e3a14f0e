"""A site's ledger: every decision about what comes in and goes out, as one line of a hash-chained file.

SITE_DIR/ledger/ledger.jsonl   one JSON object a line, each holding the hash of the line before
SITE_DIR/ledger/ledger.torn    ends of lines that a power cut left incomplete

Each line is the canonical JSON of its fields (keys sorted, no spaces, ASCII), so that not even a space can be changed
unseen. The chain proves that the lines are the ones that were written, in their order, and that none between them is
missing. It cannot prove that none is missing at the end, nor that the whole file was not written anew: for that the
server keeps the head of each round (`Head`), and the gateway and `node ledger --record` compare.
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
_TAIL_BYTES = 4096  # of the file's end, read first in search of the last line; a line has some 600
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, config=_STRICT)
class Entry:
    """One decision. `direction` is "here" for what concerns the site alone: an approval, a torn line.

    `run` and `round` as the server numbers them ("" and None outside a run); `kind`: what it was, e.g. "app",
    "train", or "error" with the code that the server was told, as in "error E_SITE_FAILED" (ledgers of earlier
    releases: "error" alone); `bytes`: its size; `digest`: its SHA-256; `app`: the SHA-256 of the run's app; `policy`:
    the SHA-256 of the rules that it was judged by; `verdict`: `PASSED`, or the code of the reason.
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
    """A line of the file: an entry with its number (1, 2, ...), its time (UTC) and its link of the chain."""

    number: int
    time: str
    prev: str
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class Head:
    """How long a ledger is, and the hash of its last line; 0 and "" where it is empty."""

    lines: int
    sha256: str


EMPTY = Head(0, "")
_ENTRY = tuple(field.name for field in fields(Entry))
_LINE = TypeAdapter(Line)


def ledger_file(site: Site) -> Path:
    """Where a site's ledger lies."""
    return site.folder / "ledger" / "ledger.jsonl"


class Ledger:
    """A ledger to write to. Several threads and processes may: each line is written under the file's lock."""

    def __init__(self, path: Path) -> None:
        """Open the ledger, or begin it. An incomplete last line is set aside, and a line of the ledger says so.

        Raises Refusal: E_LEDGER_BROKEN if the last line is not as it was written (`verify` looks at all of them),
        E_LEDGER_WRITE.
        """
        self.path = path
        self._size, self._head = 0, EMPTY
        with self._locked() as file:
            self._catch_up(file)

    @property
    def head(self) -> Head:
        """As of the last line that this object has written or read."""
        return self._head

    def append(self, entry: Entry) -> Head:
        """Write one line and wait until the disk has it.

        Raises Refusal: E_LEDGER_WRITE, and what was to be done must not be done then; E_LEDGER_BROKEN if the file
        was cut meanwhile.
        """
        with self._locked() as file:
            self._catch_up(file)
            return self._write(file, entry)

    def contains(self, head: Head) -> bool:
        """Whether a line of this number with this hash is here; of an empty head always.

        The line is found by halving, so that a ledger of years answers at once.
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
        """Take in what another process has written since we looked, and mend a torn end."""
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
            os.ftruncate(file.fileno(), self._size)  # half a line, or a whole one that nobody was promised
            raise
        self._size += len(data)
        self._head = Head(self._head.lines + 1, sha256)
        return self._head


def read_lines(path: Path) -> Iterator[Line]:
    """The ledger's lines in their order, each compared with the chain before it is given. A missing file is empty.

    Raises Refusal: E_LEDGER_BROKEN with the number of the first line that was changed, removed, moved or put in;
    E_LEDGER_INCOMPLETE for a last line that is incomplete, as a power cut leaves it.
    """
    before = EMPTY
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # a line that is just being written is waited for
            size = os.fstat(file.fileno()).st_size
            fcntl.flock(file, fcntl.LOCK_UN)
            while file.tell() < size:
                raw = file.readline()
                if not raw.endswith(b"\n"):
                    raise Refusal(reasons.LEDGER_INCOMPLETE, private=str(path))
                line = _read(raw)
                if line is None or (line.number, line.prev) != (before.lines + 1, before.sha256):
                    raise Refusal(reasons.LEDGER_BROKEN, line=before.lines + 1, private=str(path))
                yield line
                before = Head(line.number, line.sha256)
    except FileNotFoundError:
        return


def verify(path: Path, known: Iterable[Head] = ()) -> Head:
    """Check every line, and that each head of `known`, as the server was told it, is here. Gives the ledger's head.

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
    """The line if it is, to the byte, one that `Ledger` could have written, and its hash is right."""
    try:
        line = _LINE.validate_json(raw)
    except ValidationError:
        return None
    content = asdict(line)
    if raw != _canonical(content) + b"\n" or content.pop("sha256") != _hash(content):
        return None
    return line


def _last_line(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Where the last complete line ends, and the line (empty if there is none). Reads from the end."""
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
    """The line with this number; None if it is not there, or if a line on the way to it is not intact."""

    def line_from(offset: int) -> Line | None:
        """The first line that begins at `offset` or after it."""
        file.seek(max(0, offset - 1))
        if offset:
            file.readline()  # the rest of the line before
        return _read(file.readline())

    def number_from(offset: int) -> int:
        line = line_from(offset)
        return line.number if line else sys.maxsize

    line = line_from(bisect.bisect_left(range(size), number, key=number_from))
    return line if line and line.number == number else None


def _open(path: Path) -> BinaryIO:
    """To read, and to write at the end; made if need be, for its owner alone."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b")
