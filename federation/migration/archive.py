"""The archive of a study's server: a plain tar file whose first member is a manifest of all other members.

manifest-SHA256.json      the format, the settings, the contents in numbers, and the size and SHA-256 of each file;
                          the manifest's own SHA-256 is in its name
certificates/ca.*         the study's authority
sites.sqlite              the roster
runs/                     each run's folder
releases/                 signed releases, from which studies may begin
encoders/                 encoders that studies may use
summed.json               over which hospitals masked figures and answers were summed, if they were
mlflow/                   the studies' experiments (federation.migration.experiments)

`tar -xf` opens it anywhere. Our reader is stricter than tar: it accepts only plain files, exactly those of the
manifest, in its order. Nothing is compressed, so the files cannot become larger than the archive.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from federation.migration import reasons
from federation.superlink.control import ADDRESS
from models.refusal import Refusal
from pipeline.system.json_text import parse_json

FORMAT: Final = 1
Progress = Callable[[int, int], None]  # (done, total), in MiB

_MANIFEST = re.compile(r"manifest-([0-9a-f]{64})\.json")
_TOP = re.compile(
    r"(certificates/ca\.(crt|key)|sites\.sqlite|summed\.json|(runs|releases|encoders|mlflow)/[^\x00-\x1f\x7f\\]+)"
)
_MAX_MANIFEST_BYTES = 64 * 2**20
_PIECE_BYTES = 2**20


class Readable(Protocol):
    """The source from which an archive is read."""

    def read(self, count: int, /) -> bytes: ...


class Writable(Protocol):
    """The target to which an archive is written."""

    def write(self, data: bytes, /) -> int: ...


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Entry(_Part):
    """One file: path in the archive, size in bytes, SHA-256 in hex, and time of the last change."""

    path: str = Field(max_length=255)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    mtime: int = Field(ge=0, lt=2**33)  # seconds since 1970

    @model_validator(mode="after")
    def path_stays_within(self) -> Self:
        path = PurePosixPath(self.path)
        if not _TOP.fullmatch(self.path) or str(path) != self.path or ".." in path.parts:
            raise ValueError("a path that is not allowed in an archive")
        return self


class Experiments(_Part):
    """The size of a study in MLflow."""

    runs: int
    parameters: int
    figures: int  # metric values of all rounds
    artifacts: int
    versions: int


class Contents(_Part):
    """The contents of an archive in numbers. They must be the same before and after the move."""

    sites: int  # sites that have joined
    certificates: int  # current and former certificates of sites
    invitations: int  # invitation codes, including used ones
    runs: dict[str, int]  # last round with a checkpoint, by run; 0 if none
    experiments: dict[str, Experiments]


class Manifest(_Part):
    """The content of the first member. `hosts`, `address` and `port` are those of the old server."""

    format: Literal[1] = FORMAT
    software: str
    made: str
    hosts: list[str]
    address: str = Field(pattern=ADDRESS)
    port: int = Field(ge=1, le=65535)
    contents: Contents
    files: list[Entry]

    @model_validator(mode="after")
    def files_are_apart(self) -> Self:
        paths = [entry.path for entry in self.files]
        folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
        if len(set(paths)) < len(paths) or folders & set(paths):
            raise ValueError("two files with the same path")
        return self

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.files)


def entries(sources: Mapping[str, Path], progress: Progress) -> list[Entry]:
    """Hash the files of an archive, given by their paths in it, and return their manifest entries.

    Raises Refusal E_ARCHIVE_NAME for a path that the archive format cannot represent.
    """
    found, total, done = [], sum(path.stat().st_size for path in sources.values()), 0
    for name, path in sorted(sources.items()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        about = path.stat()
        try:
            _header(name, about.st_size, int(about.st_mtime))
            found.append(Entry(path=name, size=about.st_size, sha256=sha256, mtime=int(about.st_mtime)))
        except ValueError as error:  # from tarfile, or from pydantic, whose error is a ValueError
            raise Refusal(reasons.ARCHIVE_NAME, private=str(path)) from error
        done += about.st_size
        progress(_mib(done), _mib(total))
    return found


def pack(out: Writable, manifest: Manifest, sources: Mapping[str, Path], progress: Progress) -> None:
    """Write an archive with the manifest and its files. Raises OSError."""
    encoded = manifest.model_dump_json(indent=1).encode()
    name = f"manifest-{hashlib.sha256(encoded).hexdigest()}.json"
    out.write(_header(name, len(encoded), 0) + encoded + bytes(-len(encoded) % tarfile.BLOCKSIZE))
    done = 0
    for entry in manifest.files:
        out.write(_header(entry.path, entry.size, entry.mtime))
        with sources[entry.path].open("rb") as file:
            while piece := file.read(
                _PIECE_BYTES
            ):  # a file that changed since it was hashed is detected when the archive is read back
                out.write(piece)
                done += len(piece)
                progress(_mib(done), _mib(manifest.bytes))
        out.write(bytes(-entry.size % tarfile.BLOCKSIZE))
    out.write(bytes(2 * tarfile.BLOCKSIZE))


def unpack(stream: Readable, folder: Path | None, progress: Progress) -> Manifest:
    """Verify every byte of an archive; with `folder`, also write its files there, readable only by their owner.

    Raises Refusal: E_ARCHIVE_FORMAT, E_MOVE_PATH, E_ARCHIVE_DAMAGED; OSError if a file cannot be written. The caller
    removes what was written before a Refusal. To avoid that, verify without a folder first.
    """
    manifest = _read_manifest(stream)
    done = 0
    for entry in manifest.files:
        if _member(stream) != (entry.path, entry.size):
            raise Refusal(reasons.ARCHIVE_DAMAGED, private=entry.path)
        digest = hashlib.sha256()
        with _new_file(folder, entry) if folder else nullcontext() as file:
            for piece in _content(stream, entry.size):
                digest.update(piece)
                if file:
                    file.write(piece)
                done += len(piece)
                progress(_mib(done), _mib(manifest.bytes))
        if digest.hexdigest() != entry.sha256:
            raise Refusal(reasons.ARCHIVE_DAMAGED, private=entry.path)
        if folder:
            os.utime(folder / entry.path, (entry.mtime, entry.mtime))
    if stream.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE) or stream.read(1):
        raise Refusal(reasons.ARCHIVE_DAMAGED, private="its end")
    return manifest


def _mib(size: int) -> int:
    return -(-size // 2**20)


def _read_manifest(stream: Readable) -> Manifest:
    try:
        name, size = _member(stream)
    except Refusal as refusal:
        raise Refusal(reasons.ARCHIVE_FORMAT, private=refusal.private) from refusal
    sha256 = _MANIFEST.fullmatch(name)
    if sha256 is None or size > _MAX_MANIFEST_BYTES:
        raise Refusal(reasons.ARCHIVE_FORMAT, private=name)
    encoded = b"".join(_content(stream, size))
    if hashlib.sha256(encoded).hexdigest() != sha256[1]:
        raise Refusal(reasons.ARCHIVE_DAMAGED, private=name)
    try:
        content = parse_json(encoded)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise Refusal(reasons.ARCHIVE_FORMAT, private=name)
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise Refusal(reasons.MOVE_PATH, private=str(error)) from error
    except ValueError as error:
        raise Refusal(reasons.ARCHIVE_FORMAT, private=str(error)) from error


def _header(name: str, size: int, mtime: int) -> bytes:
    """Make the header block of a file. Raises ValueError beyond ustar's limits: 255 characters, 8 GiB."""
    about = tarfile.TarInfo(name)
    about.size, about.mtime, about.mode = size, mtime, 0o600
    return about.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def _member(stream: Readable) -> tuple[str, int]:
    """Read name and size of the next file."""
    try:
        about = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise Refusal(reasons.ARCHIVE_DAMAGED, private=str(error)) from error
    if about.type != tarfile.REGTYPE or about.size < 0:  # a link, a device, a folder, an extension of the format
        raise Refusal(reasons.MOVE_PATH, private=about.name)
    return about.name, about.size


def _content(stream: Readable, size: int) -> Iterator[bytes]:
    """Yield the bytes of the next file, then check that the padding of its last block is zero."""
    left = size
    while left:
        piece = stream.read(min(left, _PIECE_BYTES))
        if not piece:
            raise Refusal(reasons.ARCHIVE_DAMAGED, private="the archive ends too early")
        left -= len(piece)
        yield piece
    padding = -size % tarfile.BLOCKSIZE
    if stream.read(padding) != bytes(padding):
        raise Refusal(reasons.ARCHIVE_DAMAGED, private="the padding of a block")


def _new_file(folder: Path, entry: Entry) -> BinaryIO:
    path = folder / entry.path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
