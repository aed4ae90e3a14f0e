"""A small bundle: a program of a few lines in place of fedthorax, one library, and pip as Python brings it."""

import base64
import ensurepip
import hashlib
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.delivery.bundle import WHEELS, BundleParts, write_bundle
from federation.delivery.checksums import sign_sums, write_sums
from federation.delivery.licences import collect_licences
from models.signature import new_private_key, public_key

ROOT = Path(__file__).resolve().parents[3]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PROGRAM = "import little\ndef main(): print('fedthorax ' + little.VERSION)\n"
MAN_PAGE = "print('.TH FEDTHORAX 1')\n"

# A systemctl for scripts: {folder}/running has lines UNIT PROGRAM; {folder}/systemctl.log gets what is no question.
SYSTEMCTL = """#!/bin/sh
touch {folder}/running
case $1 in
    list-units)
        shift 3
        for pattern; do
            while read -r unit program; do
                case $unit in $pattern) echo "$unit loaded active running text" ;; esac
            done <{folder}/running
        done ;;
    show) sed -n "s|^$3 |ExecStart={{ path=|p" {folder}/running ;;
    *) echo "$*" >>{folder}/systemctl.log ;;
esac
"""

MakeBundle = Callable[..., Path]


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str], metadata: str = "") -> Path:
    """Write a wheel of a few files, with the record of their hashes that pip checks."""
    info = f"{name}-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    head = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}"
    contents = {**files, f"{info}/METADATA": head, f"{info}/WHEEL": tags}
    record = ""
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**contents, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(zipfile.ZipInfo(path), text)  # one date: the same bytes each time
    return wheel


@pytest.fixture
def private_key(tmp_path: Path) -> Path:
    """A key that signs releases; its public key is beside it, with the ending .pub."""
    path = tmp_path / "publisher.key"
    path.write_bytes(new_private_key())
    path.with_suffix(".pub").write_bytes(public_key(path))
    return path


@pytest.fixture
def make_bundle(tmp_path: Path, private_key: Path) -> MakeBundle:
    """Make a signed bundle of a role and version. `fault`: code that the program runs; `torch`: that of PyTorch."""

    def make(version: str = "0.1.0", role: str = "node", fault: str = "", torch: str = "") -> Path:
        wheels = tmp_path / f"wheels-{version}-{role}"
        wheels.mkdir()
        library = {"little.py": f"VERSION = '{version}'\n{fault}", "torch.py": torch}
        licence = {f"little-{version}.dist-info/licenses/LICENSE": "Permission is hereby granted"}
        write_wheel(wheels, "little", version, {**library, **licence}, "License-Expression: MIT\n")
        entry = {f"fedthorax-{version}.dist-info/entry_points.txt": "[console_scripts]\nfedthorax = program:main\n"}
        needs = (
            "".join(f"Provides-Extra: {extra}\n" for extra in ("node", "server", "clinic")) + "Requires-Dist: little\n"
        )
        program = {"program.py": PROGRAM, "federation/cli/man_page.py": MAN_PAGE}
        write_wheel(wheels, "fedthorax", version, {**program, **entry}, needs)
        bundled = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
        if not bundled:
            pytest.skip("this Python does not bring pip as a wheel")
        shutil.copy(bundled[0], wheels)
        folder = write_bundle(BundleParts(ROOT, role, version, [PYTHON], "", wheels), tmp_path / "bundles")
        collect_licences((folder / WHEELS).glob("little-*.whl"), folder / "licences", tmp_path / "no viewer")
        (folder / "sbom.cdx.json").write_text("{}")
        write_sums(folder)
        sign_sums(folder, private_key)
        return folder

    return make
