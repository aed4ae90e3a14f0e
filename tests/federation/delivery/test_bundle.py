"""What a bundle holds, and that its own lock names exactly its wheels."""

import re
from pathlib import Path

import pytest

from federation.delivery.archives import write_tar
from federation.delivery.bundle import UNITS, WHEELS
from federation.delivery.wheelhouse import bundle_lock, needed_glibc_minor, sha256_of
from tests.federation.delivery.conftest import MakeBundle, write_wheel

LOCK = """\
# Libraries of the role
both==1.0 \\
    --hash=sha256:{both} \\
    --hash=sha256:{absent}
old==1.0 ; python_version == "3.11" or python_version == "3.12" \\
    --hash=sha256:{old}
elsewhere==1.0 ; python_version == "3.13" \\
    --hash=sha256:{absent}
"""


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Path]:
    return {name: write_wheel(tmp_path, name, "1.0", {}) for name in ("both", "old", "torch")}


def test_the_lock_of_a_bundle_names_its_wheels_and_no_others(wheels: dict[str, Path]) -> None:
    digests = {name: sha256_of(path) for name, path in wheels.items()}
    text = bundle_lock(LOCK.format(**digests, absent="0" * 64), wheels.values())
    assert text.splitlines()[1:] == [
        "both==1.0 \\",
        f"    --hash=sha256:{digests['both']}",
        'old==1.0 ; python_version == "3.11" or python_version == "3.12" \\',
        f"    --hash=sha256:{digests['old']}",
        "torch==1.0 \\",  # which the lock leaves open
        f"    --hash=sha256:{digests['torch']}",
    ]


def test_a_build_with_a_local_version_is_pinned_as_it_is(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "torch", "2.13.0+cpu", {})
    assert f"torch==2.13.0+cpu \\\n    --hash=sha256:{sha256_of(wheel)}\n" in bundle_lock("", [wheel])


def test_a_wheel_that_does_not_say_its_glibc_is_searched_for_it(tmp_path: Path) -> None:
    library = {"torch/lib/libtorch.so.2": "\0GLIBC_2.9\0GLIBC_2.38\0", "torch/notes.txt": "\0GLIBC_2.99\0"}
    silent = write_wheel(tmp_path, "torch", "2.13.0", library)
    named = silent.rename(tmp_path / "torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert needed_glibc_minor([named]) == 28
    unnamed = named.rename(tmp_path / "torch-2.13.0-cp311-cp311-linux_x86_64.whl")
    assert needed_glibc_minor([unnamed]) == 38


@pytest.mark.parametrize("kept", ["systemd", "systemd-user"])
def test_every_unit_is_in_the_bundle_of_a_role(kept: str) -> None:
    named = {f"fedthorax-{name}@" for names in UNITS.values() for name in names}
    folder = Path(__file__).parents[3] / "docs" / kept
    assert {path.name.partition("@")[0] + "@" for path in folder.iterdir()} <= named


def test_a_bundle_has_the_units_of_its_role_the_pages_and_a_lock_of_all_wheels(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("0.1.0", "node")
    system, user = ({path.name for path in (bundle / "systemd" / scope).iterdir()} for scope in ("system", "user"))
    names = ("node@.service", "ingest@.service", "ingest@.timer", "listen@.service")
    assert user == {f"fedthorax-{name}" for name in names}
    assert system == {*user, "fedthorax-app@.service"}
    assert {"operations.md", "delivery.md", "refusals.md", "LICENSE"} <= {
        path.name for path in (bundle / "doc").iterdir()
    }
    lock = (bundle / "requirements.txt").read_text()
    named = set(re.findall(r"sha256:([0-9a-f]{64})", lock))
    assert named == {sha256_of(path) for path in (bundle / WHEELS).iterdir()}
    assert "fedthorax[node]==0.1.0 \\" in lock
    assert (bundle / "install.sh").stat().st_mode & 0o111
    assert {path.name for path in (make_bundle("0.1.0", "server") / "systemd" / "system").iterdir()} == {
        "fedthorax-server@.service"
    }


def test_a_bundle_is_archived_with_the_same_bytes(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    write_tar(bundle, tmp_path / "one.tar", 1_800_000_000)
    for path in sorted(bundle.rglob("*"), reverse=True):
        path.touch()
        if path.is_file():
            path.chmod(path.stat().st_mode & 0o700)
    write_tar(bundle, tmp_path / "two.tar", 1_800_000_000)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
