"""The app bundle (FAB): its bytes are reproducible, Flower installs it, and hostile bundles are refused."""

import hashlib
import io
import os
import shutil
import struct
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.approval import fab
from federation.approval.fab import APP, CONFIG, MANIFEST, MAX_BYTES, build, pack, read
from federation.runs.submission import build_app
from models.refusal import Refusal
from tests.federation.approval.apps import CLIENT, FILES, PYPROJECT, archive, listed, small_app, unpack

# The SHA-256 of `small_app()`. If packing changes, this hash changes and every existing approval becomes invalid.
GOLDEN = "f13e7b56b1e8931dc9cb34693acd2972da5ac202f17fdec9240cefa9bb4cf667"


def refused(content: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        read(content)
    return caught.value.code


# --- reproducible bytes -----------------------------------------------------------------------------------


def test_packed_bytes_do_not_depend_on_the_machine() -> None:
    assert hashlib.sha256(small_app()).hexdigest() == GOLDEN
    assert pack(dict(reversed(FILES.items()))) == small_app()


def test_own_app_has_one_hash_in_any_folder_and_with_any_toml_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, flowers, dumps = build(APP), build_fab_from_disk(APP), tomli_w.dumps
    monkeypatch.setattr("tomli_w.dumps", lambda config: "# by another version\n" + dumps(config))
    monkeypatch.setattr("zipfile.sys.platform", "win32")
    assert build_fab_from_disk(APP) != flowers
    copy = shutil.copytree(APP, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert build(copy) == build_app()[0] == ours


def test_flower_build_has_the_same_files_in_a_different_archive() -> None:
    theirs, ours = unpack(build_fab_from_disk(APP)), unpack(build(APP))
    assert theirs.keys() == ours.keys()
    assert tomllib.loads(theirs.pop(CONFIG).decode()) == tomllib.loads(ours.pop(CONFIG).decode())
    for files in (theirs, ours):
        del files[MANIFEST]
    assert theirs == ours


def test_flower_installs_the_bundle(tmp_path: Path) -> None:
    installed = install_from_fab(build(APP), install_dir=tmp_path, skip_prompt=True)
    for name in ("fedthorax_app/client_app.py", CONFIG):
        assert (installed / name).read_bytes() == (APP / name).read_bytes()
    assert not (installed / ".info").exists()
    assert get_fab_config(build(APP))["tool"]["flwr"]["app"]["publisher"] == "fedthorax"


def test_app_is_read_as_built() -> None:
    app = read(small_app())
    assert app.files == FILES
    assert app.name == "lab/small 1.0"
    assert app.sha256 == hashlib.sha256(small_app()).hexdigest()
    assert read(build_fab_from_disk(APP)).name == read(build(APP)).name == "fedthorax/fedthorax-app 0.1.0"


def test_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("[project]\nname = 3\n")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Refusal) as caught:
            build(folder)
        assert caught.value.code == "E_APP_CONFIG"


# --- hostile archives -------------------------------------------------------------------------------------


def test_invalid_archive_is_refused() -> None:
    good = small_app()
    for content in (b"", b"PK", b"hello" * 1000, good[:-30], good[len(good) // 2 :]):
        assert refused(content) == "E_APP_ARCHIVE"
    wrong = bytearray(good)
    wrong[good.index(CLIENT)] ^= 1  # the CRC no longer matches
    assert refused(bytes(wrong)) == "E_APP_ARCHIVE"


def test_zip_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = archive(listed({**FILES, "small/zeros.py": bytes(50 * 2**20)}), compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**17

    def unpacked(*_: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr("zipfile.ZipFile.read", unpacked)
    assert refused(bomb) == "E_APP_SIZE"
    assert refused(bytes(MAX_BYTES + 1)) == "E_APP_SIZE"


def test_zip_bomb_with_a_false_size_is_refused() -> None:
    bomb = bytearray(archive(listed({**FILES, "small/zeros.py": bytes(5 * 2**20)}), compression=zipfile.ZIP_DEFLATED))
    real, said = struct.pack("<L", 5 * 2**20), struct.pack("<L", 10)
    assert bomb.count(real) == 2  # in the local file header and in the central directory
    assert refused(bytes(bomb).replace(real, said)) == "E_APP_ARCHIVE"


def test_too_many_files_are_refused() -> None:
    assert refused(pack({**FILES, **{f"small/m{k}.py": b"" for k in range(fab.MAX_FILES)}})) == "E_APP_SIZE"


@pytest.mark.parametrize(
    "name",
    [
        "../outside.py",
        "small/../../outside.py",
        "small/..",
        "/etc/cron.d/job.py",
        "//host/share.py",
        "small//twice.py",
        "./small/dot.py",
        "small/folder/",
        "small\\windows.py",
        "C:small.py",
        "SMALL/CLIENT_APP.py",  # the same file on a case-insensitive file system
        "small/client_ａpp.py",
        "small/client_app.py/inside.py",
        "small",
        "",
    ],
)
def test_unsafe_file_name_is_refused(name: str) -> None:
    assert refused(archive(listed({**FILES, name: b"import os\n"}))) == "E_APP_PATH"


def test_duplicate_file_name_is_refused() -> None:
    twice = archive(listed(FILES)).replace(b"small/server_app.py", b"small/client_app.py")
    assert refused(twice) == "E_APP_PATH"


@pytest.mark.parametrize("mode", [0o120777, 0o020600, 0o010600, 0o060600, 0o040700])
def test_links_devices_and_folders_are_refused(mode: int) -> None:
    assert refused(archive(listed(FILES), mode=mode)) == "E_APP_PATH"


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(compression: int) -> None:
    assert refused(archive(listed(FILES), compression=compression)) == "E_APP_ARCHIVE"


def test_encrypted_files_are_refused() -> None:
    content = bytearray(small_app())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(signature) + flags] |= 1
    assert refused(bytes(content)) == "E_APP_ARCHIVE"


def test_mismatch_of_files_and_manifest_is_refused() -> None:
    good = listed(FILES)
    lines = good[MANIFEST].decode().splitlines()
    for files in (
        FILES,
        {**good, "small/unlisted.py": b"import os\n"},  # Flower would install this one
        {**good, "small/client_app.py": CLIENT + b"# \n"},
        {**good, MANIFEST: "\n".join(lines[:-1]).encode()},
        {**good, MANIFEST: "\n".join([*lines, f"small/absent.py,{'0' * 64},0"]).encode()},
        {**good, MANIFEST: b"\xff,,\n"},
        {**good, MANIFEST: b""},
    ):
        assert refused(archive(files)) == "E_APP_MANIFEST"


def rezipped(change: Callable[[zipfile.ZipInfo], None], *, comment: bytes = b"", deflate: bool = False) -> bytes:
    """Create the small app with each archive entry changed."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        for name, data in unpack(small_app()).items():
            entry = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100600 << 16
            change(entry)
            made.writestr(entry, data, zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED)
        made.comment = comment
    return content.getvalue()


def between(good: bytes, hidden: bytes, place: int) -> bytes:
    """Insert bytes into the archive and correct every offset, so that all of its files are found."""
    end = good.rindex(b"PK\5\6")
    (start,) = struct.unpack_from("<L", good, end + 16)
    content = bytearray(good)
    at = start
    while content[at : at + 4] == b"PK\1\2":
        lengths = struct.unpack_from("<3H", content, at + 28)
        (offset,) = struct.unpack_from("<L", content, at + 42)
        struct.pack_into("<L", content, at + 42, offset + len(hidden) * (offset >= place))
        at += 46 + sum(lengths)
    struct.pack_into("<L", content, end + 16, start + len(hidden) * (start >= place))
    return bytes(content[:place]) + hidden + bytes(content[place:])


def hidden_bytes() -> dict[str, bytes]:
    """Create archives with the files of the small app and additional hidden bytes."""
    good, hidden = small_app(), b"import os  # nobody is shown this\n"
    headers = [place for place in range(len(good)) if good[place : place + 4] == b"PK\3\4"]
    contents, end = good.index(b"PK\1\2"), good.rindex(b"PK\5\6")

    def with_extra(entry: zipfile.ZipInfo) -> None:
        entry.extra = struct.pack("<HH", 0xCAFE, len(hidden)) + hidden

    def with_comment(entry: zipfile.ZipInfo) -> None:
        entry.comment = hidden

    def with_date(entry: zipfile.ZipInfo) -> None:
        entry.date_time = (2107, 12, 31, 23, 59, 58)

    def with_attributes(entry: zipfile.ZipInfo) -> None:
        entry.external_attr |= 0xBEEF
        entry.internal_attr = 0xBEEF

    def with_version(entry: zipfile.ZipInfo) -> None:
        entry.create_version = 45

    local = bytearray(good)  # a date in the local header only; readers use the central directory
    struct.pack_into("<L", local, headers[1] + 10, 0xCAFEBABE)
    return {
        "before": hidden + good,
        "before, offsets put right": between(good, hidden, 0),
        "between two files": between(good, hidden, headers[1]),
        "before the contents": between(good, hidden, contents),
        "after the contents": between(good, hidden, end),
        "after": good + hidden,
        "in the archive's comment": rezipped(lambda _: None, comment=hidden),
        "in extra fields": rezipped(with_extra),
        "in comments": rezipped(with_comment),
        "in dates": rezipped(with_date),
        "in attributes": rezipped(with_attributes),
        "in versions": rezipped(with_version),
        "in a local header": bytes(local),
        "in how it is compressed": rezipped(lambda _: None, deflate=True),
        "two archives": good + good,
    }


HIDDEN = hidden_bytes()


@pytest.mark.parametrize("where", HIDDEN)
def test_hidden_bytes_in_the_archive_are_refused(where: str) -> None:
    """zipfile itself reads most of these archives without an error: see the next test."""
    assert HIDDEN[where] != small_app()
    assert refused(HIDDEN[where]) in ("E_APP_PACKING", "E_APP_ARCHIVE")


def test_archives_with_hidden_bytes_contain_the_same_files() -> None:
    readable = set()
    for where, content in HIDDEN.items():
        with suppress(zipfile.BadZipFile):
            if unpack(content) == unpack(small_app()):
                readable.add(where)
    assert readable == HIDDEN.keys() - {"after the contents"}
    assert rezipped(lambda _: None) == small_app()
    assert between(small_app(), b"", 0) == small_app()


@pytest.mark.parametrize("system", [0, 3])
def test_flower_builds_from_unix_and_windows_are_accepted(system: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipfile.sys.platform", "win32" if system == 0 else "linux")
    content = build_fab_from_disk(APP)
    with zipfile.ZipFile(io.BytesIO(content)) as made:
        assert {entry.create_system for entry in made.infolist()} == {system}
    assert read(content).name == "fedthorax/fedthorax-app 0.1.0"


@pytest.mark.parametrize(
    "path",
    [
        "torch.py",
        "torch/__init__.py",
        "torch/nn/functional.py",  # a namespace package: Python would merge it with others of its name
        "numpy.py",
        "flwr/clientapp.py",
        "federation/__init__.py",
        "models.py",
        "pipeline/site/folder.py",
        "configs/__init__.py",
        "opacus.py",
        "json.py",
        "os.py",
        "_thread.py",
        "xml/etree.py",
        "pydicom/__init__.py",  # an installed library
        "PIL/Image.py",
        "pil.py",
        "Torch.py",
        "ｔorch.py",
        "TORCH.PY",
        "torch.pyc",
        "torch.cpython-311-x86_64-linux-gnu.so",
        "torch.abi3.so",
        "sitecustomize.py",
        "usercustomize/__init__.py",
    ],
)
def test_module_that_shadows_an_installed_one_is_refused(path: str) -> None:
    with pytest.raises(Refusal) as caught:
        read(pack({**FILES, path: b"import os\n"}))
    assert caught.value.code == "E_APP_SHADOW"


@pytest.mark.parametrize(
    "path",
    [
        "small/torch.py",  # small.torch
        "small/json/__init__.py",
        "docs/index.md",
        "torch/README.md",  # not importable
        "site.toml",
        "LICENSE",
        "tests/test_app.py",
        "smaller.py",
    ],
)
def test_module_that_shadows_nothing_is_allowed(path: str) -> None:
    assert path in read(pack({**FILES, path: b"# text\n"})).files


@pytest.mark.parametrize(
    "source",
    [
        b"\xff\xfe\x00",
        b"# -*- coding: utf-7 -*-\n# +AAo-import os\n",
        b"#!/usr/bin/env python\n# vim: set fileencoding=latin-1 :\n",
        b"# coding: no-such-thing\n",
        b"\xef\xbb\xbf# coding: latin-1\n",
        bytes(range(128, 256)),
    ],
)
def test_source_with_invalid_or_unusual_encoding_is_refused(source: bytes) -> None:
    assert refused(small_app(odd=source)) == "E_APP_TEXT"


def test_compiled_code_is_refused() -> None:
    assert refused(pack({**FILES, "small/fast.so": b"\x7fELF\x02\x01\x01\x00\xff"})) == "E_APP_TEXT"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "small"', ""),
        ('name = "small"', "name = 7"),
        ('name = "small"', 'name = "../../small"'),
        ('version = "1.0"', 'version = "1/../../../evil"'),  # Flower uses it in a folder name
        ('publisher = "lab"', 'publisher = "a/b"'),
        ('publisher = "lab"', 'publisher = "lab\\u001b[2J"'),
        ('publisher = "lab"', f'publisher = "{"x" * 200}"'),
        ("[tool.flwr.app.components]", "[tool.flwr.app.other]"),
        ("[project]", "[project"),
        ("dependencies = []", f"dependencies = {'[' * 5000}"),
        ("dependencies = []", f"dependencies = {'9' * 5000}"),
    ],
)
def test_invalid_app_settings_are_refused(old: str, new: str) -> None:
    assert refused(pack({**FILES, CONFIG: PYPROJECT.replace(old, new, 1).encode()})) == "E_APP_CONFIG"


def test_app_without_settings_is_refused() -> None:
    files = {name: data for name, data in FILES.items() if name != CONFIG}
    assert refused(archive(listed(files))) == "E_APP_CONFIG"


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_randomly_altered_archive_is_refused_without_other_errors(data: st.DataObject) -> None:
    content = bytearray(small_app())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        app = read(bytes(content))
    except Refusal as refusal:
        assert refusal.code.startswith("E_APP_")
        return
    assert (app.files, bytes(content)) == (FILES, small_app())
