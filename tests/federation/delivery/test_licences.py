"""The licences of what is released: each is known, and none is the GPL."""

from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

from federation.delivery.licences import check_licence, collect_licences, licence_of, permits
from federation.delivery.locks import ROLES, lock_file, locked
from models.refusal import Refusal
from tests.federation.delivery.conftest import write_wheel

ROOT = Path(__file__).resolve().parents[3]


def stated(**fields: str) -> Message:
    message = Message()
    message["Name"] = "library"
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize("role", ROLES)
def test_every_library_of_a_role_may_be_released(role: str) -> None:
    names = locked(lock_file(ROOT, role).read_text())
    found = {name: licence_of(metadata.distribution(name).metadata) for name in names if _installed(name)}
    assert {name: licence for name, licence in found.items() if not permits(licence)} == {}
    assert len(found) >= len(names) - 3  # some are only for other versions of Python


def test_pytorch_may_be_released() -> None:
    assert permits(licence_of(metadata.distribution("torch").metadata))


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "MIT OR GPL-3.0-only",
        "BSD-3-Clause AND 0BSD",
        "Apache-2.0 WITH LLVM-exception",
        "GPL-2.0-only OR ISC AND MIT",
    ],
)
def test_a_permitted_licence_or_alternative_is_enough(expression: str) -> None:
    assert permits(expression)


@pytest.mark.parametrize(
    "expression",
    [
        *("GPL-3.0-or-later", "AGPL-3.0-only", "LGPL-2.1-only", "MIT AND GPL-2.0-only", "SSPL-1.0", "", "Proprietary"),
        *("(MIT OR ISC) AND GPL-3.0-only", "GPL-3.0-only WITH GCC-exception-3.1", "Apache-2.0 WITH Commons-Clause"),
    ],
)
def test_copyleft_unknown_and_absent_licences_are_refused(expression: str) -> None:
    with pytest.raises(Refusal, match="E_LICENCE: the licence of library"):
        check_licence(stated(License_Expression=expression))


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License": "BSD, Public Domain"}, "BSD-2-Clause AND LicenseRef-Public-Domain"),
        ({"License": "CC0-1.0 OR Apache-2.0"}, "CC0-1.0 OR Apache-2.0"),
        ({"License": "A whole text\nover lines", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"}, ""),
        ({"License": "GPLv3", "Classifier": "License :: OSI Approved :: MIT License"}, "GPLv3"),
    ],
)
def test_statements_in_words_are_read(fields: dict[str, str], licence: str) -> None:
    assert licence_of(stated(**fields)) == licence


def test_licence_files_are_collected_with_a_table(tmp_path: Path) -> None:
    files = {"one-1.0.dist-info/licenses/LICENSE": "the text", "one/license.py": "code", "one/libs/COPYING": "more"}
    one = write_wheel(tmp_path, "one", "1.0", files, "License-Expression: MIT\n")
    two = write_wheel(tmp_path, "two", "2.0", {}, "License-Expression: ISC\n")
    collect_licences([one, two], tmp_path / "licences", tmp_path / "no viewer")
    kept = {path.name: path.read_text() for path in (tmp_path / "licences" / "one-1.0").iterdir()}
    assert kept == {"one-1.0.dist-info_licenses_LICENSE": "the text", "one_libs_COPYING": "more"}
    table = (tmp_path / "licences" / "licences.txt").read_text()
    assert table == "one-1.0\tMIT\ntwo-2.0\tISC\tthe wheel holds no licence file\n"
    write_wheel(tmp_path, "three", "1.0", {}, "License-Expression: GPL-3.0-only\n")
    with pytest.raises(Refusal, match="E_LICENCE: the licence of three"):
        collect_licences(tmp_path.glob("*.whl"), tmp_path / "again", tmp_path / "no viewer")


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
