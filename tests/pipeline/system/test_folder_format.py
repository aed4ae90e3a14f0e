"""A folder says which version last worked in it, and a folder of a newer format is refused."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.system.folder_format import FILE, FORMATS, Stamp, check_folder, read_stamp, stamp_folder


def test_stamp_names_format_and_version(tmp_path: Path) -> None:
    stamp_folder(tmp_path, "site")
    assert read_stamp(tmp_path) == Stamp(FORMATS["site"], version("fedthorax"))
    written = (tmp_path / FILE).stat().st_mtime_ns
    stamp_folder(tmp_path, "site")
    assert (tmp_path / FILE).stat().st_mtime_ns == written  # every start would otherwise write it


def test_folder_without_stamp_has_the_first_format(tmp_path: Path) -> None:
    assert read_stamp(tmp_path) == Stamp(1, "")
    check_folder(tmp_path, "clinic")


def test_another_version_of_the_same_format_takes_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 1, "software": "9.9.9", "note": "of a later release"}')
    check_folder(tmp_path, "server")
    stamp_folder(tmp_path, "server")
    assert read_stamp(tmp_path).software == version("fedthorax")


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"format": FORMATS["site"] + 1, "software": "9.9.9"}),
        '{"format": "2"}',
        "[]",
        "",
        "{}",
        '{"format": true}',
    ],
)
def test_newer_or_unknown_format_is_refused_unchanged(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    for refuse in (check_folder, stamp_folder):
        with pytest.raises(Refusal, match="E_FORMAT_NEWER"):
            refuse(tmp_path, "site")
    assert (tmp_path / FILE).read_text() == content
