"""The root file system of an image: the files of a few Debian packages, unpacked.

No maintainer script runs, so the same packages give the same files. There is no package manager, and no shell where
the role needs none. mmdebstrap resolves and fetches the packages, and verifies their signatures. It uses its own
mirrors, or the one given.

`var/lib/dpkg/status.d/` holds the description of each package: scanners for vulnerabilities read it there.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from federation.delivery import reasons
from federation.delivery.wheelhouse import sha256_of
from models.refusal import Refusal

SUITES = {"3.11": "bookworm", "3.13": "trixie"}  # Debian's own Python; no release of Debian has 3.12
# The libraries of C and C++ are those of the newest release: a build of PyTorch may ask for newer ones than those of
# Python's release, and programs of an older release run with them.
C_SUITE, C_LIBRARIES = "trixie", ("libc6", "libgcc-s1", "libstdc++6")
USER, GROUP = 10001, 10001
HOME = "var/lib/fedthorax"
# Packages that others ask for and that nothing in an image uses: package management, and libraries of Python's modules
# readline, dbm and nis, which then cannot be imported.
LEFT_OUT = (
    *("debconf", "debianutils", "dpkg", "libacl1", "libmd0", "mawk", "perl-base", "tar"),
    *("libcom-err2", "libdb5.3", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0"),
    *("libnsl2", "libreadline8", "libtirpc-common", "libtirpc3", "readline-common"),
)
_UNUSED = ("usr/share/bash-completion", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man")
_PASSWD = f"root:x:0:0:root:/root:/usr/sbin/nologin\nfedthorax:x:{USER}:{GROUP}:fedthorax:/tmp:/usr/sbin/nologin\n"
_GROUP = f"root:x:0:\nfedthorax:x:{GROUP}:\n"


@dataclass(frozen=True)
class DebianPackage:
    """A package of which an image holds files."""

    name: str
    version: str
    architecture: str
    suite: str
    sha256: str

    @property
    def qualifiers(self) -> dict[str, str]:
        """What a package URL adds to name and version."""
        return {"arch": self.architecture, "distro": self.suite}


def packages_for(python: str, role: str) -> list[str]:
    """Return the packages that an image of a role asks for. The node has a sandbox, which starts tasks with a shell."""
    of_python = [f"python{python}-minimal", f"libpython{python}-stdlib", "tzdata"]
    return ["base-files", *of_python, *(["bubblewrap", "dash"] if role == "node" else [])]


def fetch_packages(python: str, role: str, folder: Path, mirror: str = "") -> dict[Path, DebianPackage]:
    """Fetch the packages of an image and what they depend on into an empty folder. Raises Refusal E_BUILD_FAILED."""
    by_name: dict[str, tuple[Path, DebianPackage]] = {}
    for suite, names in ((SUITES[python], packages_for(python, role)), (C_SUITE, C_LIBRARIES)):
        for file in _fetch(suite, names, folder / suite, mirror):
            package = _described(file, suite)
            if not _left_out(package.name):
                by_name[package.name] = (file, package)
    return dict(by_name.values())


def _fetch(suite: str, names: Sequence[str], folder: Path, mirror: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(names)}"]
    command += [f"--extract-hook=copy-out /var/cache/apt/archives {folder}", suite, "/dev/null"]
    if subprocess.run([*command, *filter(None, [mirror])], check=False).returncode:
        raise Refusal(reasons.BUILD_FAILED, step=f"fetching the packages of Debian {suite}")
    return sorted(folder.rglob("*.deb"))


def unpack_root(packages: Mapping[Path, DebianPackage], root: Path) -> None:
    """Unpack packages into an empty folder. Needs root."""
    for name in ("bin", "lib", "lib64", "sbin"):  # as on each Debian since 12; older packages have files there
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for file, package in packages.items():
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", file], check=True, stdout=subprocess.PIPE).stdout
        command = ["tar", "--extract", "--keep-directory-symlink", "--numeric-owner", "--directory", str(root)]
        subprocess.run(command, input=content, check=True)
        control = subprocess.run(["dpkg-deb", "--field", file], check=True, stdout=subprocess.PIPE).stdout
        (status / package.name).write_bytes(control)
    _trim(root)
    _complete(root)


def _described(file: Path, suite: str) -> DebianPackage:
    shown = "--showformat=${Package} ${Version} ${Architecture}"
    done = subprocess.run(["dpkg-deb", "--show", shown, file], check=True, capture_output=True, text=True)
    name, version, architecture = done.stdout.split()
    return DebianPackage(name, version, architecture, suite, sha256_of(file))


def _left_out(name: str) -> bool:
    return name.removesuffix("t64") in LEFT_OUT  # Debian renamed libraries for 64-bit times


def _trim(root: Path) -> None:
    """Remove what only people read, but not the licences."""
    for name in _UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    for path in (root / "usr/share/doc").rglob("*"):
        if path.is_symlink() or (path.is_file() and path.name != "copyright"):
            path.unlink()


def _complete(root: Path) -> None:
    """Write what maintainer scripts would write, as far as it is needed."""
    etc = {"passwd": _PASSWD, "group": _GROUP, "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n"}
    for name, text in etc.items():
        (root / "etc" / name).write_text(text, encoding="utf-8")
    shell = root / "bin/sh"
    if (root / "bin/dash").exists() and not shell.exists():
        shell.symlink_to("dash")
    home = root / HOME
    home.mkdir(mode=0o700)
    shutil.chown(home, USER, GROUP)
    (root / "tmp").chmod(0o1777)
