"""Tests of unpacking ZIP archives from users, including malicious ones. The archives are synthetic."""

import errno
import os
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.refusal import Refusal
from pipeline.imaging import archive
from pipeline.imaging.archive import open_images
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from tests.helpers.dicom_files import body, write_series


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder where archives are unpacked during the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def make_zip(path: Path, files: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression=method) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def refused(source: Path, temporary: Path) -> str:
    with pytest.raises(Refusal) as caught, open_images(source):
        pass
    assert list(temporary.iterdir()) == []
    assert str(source) not in str(caught.value)
    return caught.value.code


def test_folders_and_files_are_returned_unchanged(tmp_path):
    file = tmp_path / "1.dcm"
    file.write_bytes(b"x")
    with open_images(tmp_path) as opened:
        assert opened == tmp_path
    with open_images(file) as opened:
        assert opened == file
    with open_images([file, tmp_path]) as opened:
        assert opened == [file, tmp_path]


def test_zip_is_unpacked_and_removed(tmp_path, temporary):
    path = make_zip(tmp_path / "a.zip", {"one/1": b"first", "2": b"second"})
    with open_images(path) as opened:
        assert (opened / "one" / "1").read_bytes() == b"first"
        assert (opened / "2").read_bytes() == b"second"
    assert list(temporary.iterdir()) == []


def test_unpacked_files_are_removed_after_an_error(tmp_path, temporary):
    path = make_zip(tmp_path / "a.zip", {"1": b"first"})
    with pytest.raises(KeyError), open_images(path):
        raise KeyError
    assert list(temporary.iterdir()) == []


def test_zip_in_a_list_of_files_is_unpacked(tmp_path):
    path = make_zip(tmp_path / "no suffix", {"1": b"first"})
    with open_images([path, tmp_path]) as opened:
        assert (opened[0] / "1").read_bytes() == b"first"
        assert opened[1] == tmp_path


def test_zipped_series_is_read_with_the_same_fingerprint(tmp_path):
    folder = tmp_path / "series"
    paths = write_series(folder, body())
    path = make_zip(tmp_path / "a.zip", {file.name: file.read_bytes() for file in paths})
    fingerprints = set()
    for _ in range(2):
        with open_images(path) as opened:
            (series,), findings = find_series(opened)
            assert findings == []
            assert np.array_equal(read_series(series).hu, body())
            fingerprints.add(series.fingerprint)
    assert len(fingerprints) == 1


def test_dicom_file_with_zip_signature_is_not_a_zip(tmp_path):
    path = tmp_path / "1.dcm"
    path.write_bytes(b"PK\x03\x04".ljust(128, b"\0") + b"DICM")
    with open_images(path) as opened:
        assert opened == path


def test_missing_file_is_refused(tmp_path, temporary):
    assert refused(tmp_path / "nothing", temporary) == "E_NO_IMAGES"


def test_zip_bomb_is_refused(tmp_path, temporary):
    assert refused(make_zip(tmp_path / "a.zip", {"1": bytes(10**7)}), temporary) == "E_ARCHIVE_RATIO"


def test_too_many_bytes_in_total_are_refused(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    path = make_zip(tmp_path / "a.zip", {"1": os.urandom(600), "2": os.urandom(600)})
    assert refused(path, temporary) == "E_ARCHIVE_RATIO"


def test_zip_bomb_with_false_size_is_refused(tmp_path, temporary):
    """The central directory says 1000 bytes; ten million bytes are unpacked."""
    path = make_zip(tmp_path / "a.zip", {"1": bytes(10**7)})
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<L", 10**7), struct.pack("<L", 1000)))
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "..\\x", "\\x", "C:\\x", "c:x", "a/..", "//host/share/x"]
)
def test_paths_outside_the_folder_are_refused(tmp_path, temporary, name):
    path = make_zip(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    assert refused(path, temporary) == "E_ARCHIVE_PATH"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, temporary, kind):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        entry = zipfile.ZipInfo("link")
        entry.create_system = 3
        entry.external_attr = (kind | 0o777) << 16
        packed.writestr(entry, "/etc/passwd")
    assert refused(path, temporary) == "E_ARCHIVE_PATH"


@pytest.mark.parametrize("name", ["inner.zip", "inner.ZIP", "a/inner.tar", "inner.tar.gz"])
def test_archive_in_an_archive_is_refused(tmp_path, temporary, name):
    assert refused(make_zip(tmp_path / "a.zip", {name: b"x"}), temporary) == "E_ARCHIVE_DEPTH"


def test_too_many_entries_are_refused(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(archive, "MAX_ENTRIES", 10)
    path = make_zip(tmp_path / "a.zip", {str(number): b"" for number in range(11)})
    assert refused(path, temporary) == "E_ARCHIVE_DEPTH"


def test_huge_central_directory_is_refused_without_loading(tmp_path, temporary, monkeypatch):
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 50)
    path = make_zip(tmp_path / "a.zip", {"1": b"", "2": b""})
    monkeypatch.delattr(zipfile, "ZipFile")
    assert refused(path, temporary) == "E_ARCHIVE_DEPTH"


def test_zip64_end_record_is_refused(tmp_path, temporary):
    path = tmp_path / "a.zip"
    end = b"PK\x05\x06" + bytes(8) + struct.pack("<LLH", 10, 0, 0)
    path.write_bytes(bytes(100) + b"PK\x06\x07" + bytes(16) + end)
    assert refused(path, temporary) == "E_ARCHIVE_DEPTH"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip at all" * 100])
def test_file_that_is_not_a_zip_is_refused(tmp_path, temporary, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


def test_truncated_zip_is_refused(tmp_path, temporary):
    path = make_zip(tmp_path / "a.zip", {"1": os.urandom(10_000)})
    path.write_bytes(path.read_bytes()[:5000])
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


def test_damaged_zip_is_refused(tmp_path, temporary):
    path = make_zip(tmp_path / "a.zip", {"1": os.urandom(10_000)})
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


def test_full_disk_is_not_reported_as_broken_zip(tmp_path, temporary, monkeypatch):
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.imaging.archive.shutil.copyfileobj", fill)
    with pytest.raises(OSError, match="No space left"), open_images(make_zip(tmp_path / "a.zip", {"1": b"x"})):
        pass
    assert list(temporary.iterdir()) == []


def test_encrypted_zip_is_refused(tmp_path, temporary):
    path = make_zip(tmp_path / "a.zip", {"1": b"secret"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_with_unbounded_memory_is_refused(tmp_path, temporary, method):
    path = make_zip(tmp_path / "a.zip", {"1": b"x" * 100}, method=method)
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


def test_two_entries_with_one_name_are_refused(tmp_path, temporary):
    path = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as packed:
        packed.writestr("1", b"first")
        packed.writestr("1", b"second")
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"


def test_file_in_place_of_a_folder_is_refused(tmp_path, temporary):
    path = make_zip(tmp_path / "a.zip", {"1": b"file", "1/2": b"in a folder"})
    assert refused(path, temporary) == "E_ARCHIVE_BROKEN"
