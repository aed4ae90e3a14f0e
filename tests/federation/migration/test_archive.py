"""Tests of the server archive: unpacking returns the packed files, and any other file is refused."""

import gzip
import hashlib
import io
import json
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from federation.migration.archive import Contents, Entry, Manifest, entries, pack, unpack
from models.refusal import Refusal

CONTENTS = Contents(sites=0, certificates=0, invitations=0, runs={}, experiments={})
FILES = {
    "certificates/ca.crt": b"a certificate",
    "certificates/ca.key": b"a key",
    "mlflow/trial/experiment.json": b"{}",
    "runs/trial-1/checkpoints/empty": b"",
    "runs/trial-1/north alone/weights": bytes(range(256)) * 6,  # exactly three tar blocks
    "sites.sqlite": b"a roster",
}


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def manifest(files: list[Entry]) -> Manifest:
    return Manifest(
        software="fedthorax 0",
        made="2026-01-01T00:00:00+00:00",
        hosts=["a.example"],
        address="a.example:8443",
        port=8443,
        contents=CONTENTS,
        files=files,
    )


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number, (name, content) in enumerate(FILES.items()):
        found[name] = tmp_path / f"source-{number}"
        found[name].write_bytes(content)
    return found


@pytest.fixture
def packed(sources: dict[str, Path]) -> bytes:
    out = io.BytesIO()
    pack(out, manifest(entries(sources, quiet)), sources, quiet)
    return out.getvalue()


def code_of(content: bytes, folder: Path | None = None) -> str:
    with pytest.raises(Refusal) as refused:
        unpack(io.BytesIO(content), folder, quiet)
    return refused.value.code


def test_unpacked_files_are_identical_and_private_to_their_owner(
    packed: bytes, sources: dict[str, Path], tmp_path: Path
):
    told = unpack(io.BytesIO(packed), tmp_path / "new", quiet)
    back = {str(p.relative_to(tmp_path / "new")): p for p in (tmp_path / "new").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in back.items()} == FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in back.values()} == {0o600}
    assert {stat.S_IMODE(path.parent.stat().st_mode) & 0o077 for path in back.values()} <= {0, 0o055}
    assert all(int(path.stat().st_mtime) == int(sources[name].stat().st_mtime) for name, path in back.items())
    assert told.hosts == ["a.example"]
    assert told.bytes == sum(map(len, FILES.values()))


def test_standard_tar_reads_the_archive(packed: bytes):
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        first, *rest = tar.getnames()
        assert {name: tar.extractfile(name).read() for name in rest} == FILES
        assert first == f"manifest-{hashlib.sha256(tar.extractfile(first).read()).hexdigest()}.json"


def test_changed_byte_is_refused_or_has_no_effect(packed: bytes, tmp_path: Path):
    """A changed byte is refused, or tar ignores it and the content stays the same."""
    told = unpack(io.BytesIO(packed), None, quiet)
    unseen = 0
    for position in range(0, len(packed), 3):
        changed = bytearray(packed)
        changed[position] ^= 0x10
        try:
            assert unpack(io.BytesIO(changed), None, quiet) == told  # each file matches its SHA-256 in the manifest
            unseen += 1
        except Refusal as refusal:
            assert refusal.code in ("E_ARCHIVE_DAMAGED", "E_ARCHIVE_FORMAT", "E_MOVE_PATH")
    assert unseen <= 2 * (len(FILES) + 1), "tar ignores only the two bytes after a header's checksum"


@pytest.mark.parametrize("cut", [1, 511, 512, 1023, 1024, 1025, 2000])
def test_truncated_archive_is_damaged(packed: bytes, cut: int):
    assert code_of(packed[:-cut]) == "E_ARCHIVE_DAMAGED"


def test_check_without_a_folder_writes_no_files(packed: bytes, tmp_path: Path):
    """Without a folder, unpack() only checks the archive and writes no files."""
    before = set(tmp_path.iterdir())
    code_of(packed[:-2000])
    assert set(tmp_path.iterdir()) == before


def test_bytes_after_the_end_are_damage(packed: bytes):
    assert code_of(packed + b"x") == "E_ARCHIVE_DAMAGED"
    assert code_of(packed + bytes(512)) == "E_ARCHIVE_DAMAGED"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(2048), b"no tar at all" * 100])
def test_file_that_is_not_an_archive_is_refused(content: bytes):
    assert code_of(content) == "E_ARCHIVE_FORMAT"


def test_compressed_archive_is_refused(packed: bytes):
    assert code_of(gzip.compress(packed)) == "E_ARCHIVE_FORMAT"


# --- archives that no export creates ----------------------------------------------------------------------


def crafted(told: Any, *members: tuple[tarfile.TarInfo, bytes], name: str = "") -> bytes:
    """A well-formed tar with any manifest and any members."""
    out = io.BytesIO()
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        first = tarfile.TarInfo(name or f"manifest-{hashlib.sha256(text).hexdigest()}.json")
        for about, content in ((first, text), *members):
            about.size = about.size or len(content)
            tar.addfile(about, io.BytesIO(content))
    return out.getvalue()


def telling(*paths: str, content: bytes = b"x") -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    files = [{"path": path, "size": len(content), "sha256": sha256, "mtime": 0} for path in paths]
    return {**manifest([]).model_dump(mode="json"), "files": files}


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/evil",
        "runs/../../evil",
        "runs/a/../../../evil",
        "runs/./evil",
        "releases",
        "releases/../release.key",
        "release.key",
        "encoders/../../evil",
        "runs//evil",
        "runs/",
        "runs/evil/",
        "runs",
        "",
        "evil",
        "server.toml",
        "certificates/server.key",
        "certificates/ca.key/evil",
        "mlflow.db",
        "runs/a\\..\\evil",
        "runs/a\x00b",
        "runs/a\nb",
        "runs/" + "a" * 251,
    ],
)
def test_path_outside_the_expected_folders_is_refused(path: str, tmp_path: Path):
    member = tarfile.TarInfo(path.replace("\x00", ""))
    assert code_of(crafted(telling(path), (member, b"x")), tmp_path / "new") == "E_MOVE_PATH"
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("paths", [("runs/a", "runs/a"), ("runs/a", "runs/a/b")])
def test_conflicting_paths_are_refused(paths: tuple[str, str], tmp_path: Path):
    members = [(tarfile.TarInfo(path), b"x") for path in paths]
    assert code_of(crafted(telling(*paths), *members), tmp_path) == "E_MOVE_PATH"


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
    ],
)
def test_member_that_is_not_a_regular_file_is_refused(kind: bytes, tmp_path: Path):
    member = tarfile.TarInfo("runs/a")
    member.type, member.linkname = kind, "/etc/passwd"
    assert code_of(crafted(telling("runs/a"), (member, b"x")), tmp_path) == "E_MOVE_PATH"
    assert list(tmp_path.iterdir()) == []


def test_member_that_differs_from_the_manifest_is_damaged():
    member = tarfile.TarInfo("runs/a")
    assert code_of(crafted(telling("runs/a"), (member, b"longer"))) == "E_ARCHIVE_DAMAGED"
    assert code_of(crafted(telling("runs/a"), (tarfile.TarInfo("runs/a"), b"y"))) == "E_ARCHIVE_DAMAGED"
    assert code_of(crafted(telling("runs/a"), (tarfile.TarInfo("runs/b"), b"x"))) == "E_ARCHIVE_DAMAGED"
    assert code_of(crafted(telling("runs/a"))) == "E_ARCHIVE_DAMAGED"
    assert code_of(crafted(telling(), (tarfile.TarInfo("runs/a"), b"x"))) == "E_ARCHIVE_DAMAGED"


def test_false_size_in_the_manifest_allocates_no_space(tmp_path: Path):
    """A manifest that claims one terabyte is refused where the data ends."""
    told = telling("runs/a")
    told["files"][0]["size"] = 2**40
    member = tarfile.TarInfo("runs/a")
    member.size = 2**40
    head = crafted(told).rstrip(b"\x00")
    head += bytes(-len(head) % 512)
    assert code_of(head + member.tobuf(tarfile.GNU_FORMAT) + b"x", tmp_path) == "E_ARCHIVE_DAMAGED"


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"format": 2}, "E_ARCHIVE_FORMAT"),
        ({}, "E_ARCHIVE_FORMAT"),
        ([], "E_ARCHIVE_FORMAT"),
        (b"no JSON", "E_ARCHIVE_FORMAT"),
        (b"\xff\xfe", "E_ARCHIVE_FORMAT"),
        (b"[" * 100_000, "E_ARCHIVE_FORMAT"),
        ({"format": 1}, "E_MOVE_PATH"),
        ({**telling(), "more": 1}, "E_MOVE_PATH"),
    ],
)
def test_unknown_or_invalid_manifest_is_refused(told: Any, code: str):
    assert code_of(crafted(told)) == code


def test_manifest_that_does_not_match_the_hash_in_its_name_is_damaged():
    assert code_of(crafted(telling(), name=f"manifest-{'0' * 64}.json")) == "E_ARCHIVE_DAMAGED"
    assert code_of(crafted(telling(), name="manifest.json")) == "E_ARCHIVE_FORMAT"


# --- files that an export refuses -------------------------------------------------------------------------


def test_name_that_does_not_fit_a_tar_header_is_refused(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x")
    for name in ("runs/" + "a" * 101, "runs/" + "b/" * 130, "runs/line\nbreak"):
        with pytest.raises(Refusal, match="E_ARCHIVE_NAME"):
            entries({name: tmp_path / "file"}, quiet)


def test_file_that_changes_during_packing_is_detected_on_reading(sources: dict[str, Path]):
    told = manifest(entries(sources, quiet))
    for change in (b"another", b"longer than before", b""):
        sources["sites.sqlite"].write_bytes(change)
        out = io.BytesIO()
        pack(out, told, sources, quiet)
        assert code_of(out.getvalue()) == "E_ARCHIVE_DAMAGED"


@pytest.mark.parametrize(
    "address", ['a.example:8443"\nsocket = "/tmp/s', "a.example:8443\n", "a.example", "https://a:1"]
)
def test_address_that_no_server_has_is_refused(address: str, tmp_path: Path):
    out = io.BytesIO()
    pack(out, manifest([]).model_copy(update={"address": address}), {}, quiet)
    assert code_of(out.getvalue()) == "E_MOVE_PATH"
