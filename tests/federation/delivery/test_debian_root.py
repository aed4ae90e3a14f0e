"""The root file system of an image: packages unpacked, nothing of Debian's own machinery, one user."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from federation.delivery.debian_root import GROUP, LEFT_OUT, SUITES, USER, DebianPackage, packages_for, unpack_root
from federation.delivery.locks import PYTHONS

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dpkg-deb") is None, reason="needs root and Debian's dpkg-deb"
)


def package(folder: Path, name: str, files: dict[str, str]) -> tuple[Path, DebianPackage]:
    """Build a package. Names that end in `@` are links."""
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "DEBIAN" / "postinst").write_text("#!/bin/sh\ntouch /a-script-ran\n")
    (tree / "DEBIAN" / "postinst").chmod(0o755)
    for path, text in files.items():
        target = tree / path.rstrip("@")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(text) if path.endswith("@") else target.write_text(text)
    file = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, file], check=True, capture_output=True)
    return file, DebianPackage(name, "1.0-1", "all", "bookworm", "0" * 64)


@needs_root
def test_root_holds_the_files_of_the_packages_and_one_user(tmp_path: Path) -> None:
    packages = dict(
        [
            package(tmp_path, "base-files", {"etc/debian_version": "12", "tmp/.keep": "", "var/lib/.keep": ""}),
            package(tmp_path, "old", {"lib/x/old.so": "old", "bin/dash": "", "usr/share/man/man1/old.1": "how"}),
            package(
                tmp_path,
                "new",
                {
                    "usr/lib/x/new.so": "new",
                    "usr/share/doc/new/copyright": "free",
                    "usr/share/doc/new/changelog": "much",
                },
            ),
        ]
    )
    root = tmp_path / "root"
    unpack_root(packages, root)
    assert (root / "usr/lib/x/old.so").read_text() == "old"  # below /lib in its package: a link on Debian
    assert (root / "lib/x/new.so").read_text() == "new"
    assert (root / "usr/share/doc/new/copyright").exists()  # licences stay
    gone = ("usr/share/man", "usr/share/doc/new/changelog", "a-script-ran", "var/lib/dpkg/info")
    assert not [name for name in gone if (root / name).exists()]
    assert "Version: 1.0-1" in (root / "var/lib/dpkg/status.d/old").read_text()  # for scanners
    assert f"fedthorax:x:{USER}:{GROUP}:" in (root / "etc/passwd").read_text()
    home = (root / "var/lib/fedthorax").stat()
    assert (home.st_uid, home.st_gid, stat.S_IMODE(home.st_mode)) == (USER, GROUP, 0o700)
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    assert (root / "bin/sh").readlink() == Path("dash")


def test_only_the_node_has_a_sandbox_and_the_shell_that_starts_its_tasks() -> None:
    for role in ("server", "clinic"):
        assert not {"bubblewrap", "dash"} & set(packages_for("3.11", role))
    assert {"bubblewrap", "dash"} <= set(packages_for("3.11", "node"))
    assert not set(LEFT_OUT) & set(packages_for("3.13", "node"))


def test_images_are_for_pythons_that_a_bundle_can_have() -> None:
    assert set(SUITES) <= set(PYTHONS)
