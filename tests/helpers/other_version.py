"""An environment with another version of fedthorax, which uses the installed libraries of this one.

Such an environment takes a second: it has a Python, a line that names the source, one that names this environment's
libraries, the package's metadata with any version, and the programs that start processes.
"""

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """#!{python} -I
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.argv[0] = {name!r}
    sys.exit({function}())
"""


def make_environment(folder: Path, source: Path, version: str, *, libraries: Sequence[Path] = ()) -> Path:
    """Make an environment for the package in `source`, which takes itself for this version; return its Python.

    `libraries`: folders whose libraries are used instead of the installed ones of the same names.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    installed = dict.fromkeys(each for each in sys.path if each.endswith("site-packages"))
    (own / "version.pth").write_text("\n".join([str(source), *map(str, libraries), *installed]) + "\n")
    about = own / f"fedthorax-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fedthorax\nVersion: {version}\n")
    for each in entry_points(group="console_scripts"):
        if each.dist is not None and each.dist.name in ("flwr", "fedthorax"):
            program = folder / "bin" / each.name
            module, function = each.value.split(":")
            program.write_text(_PROGRAM.format(python=python, module=module, function=function, name=each.name))
            program.chmod(0o755)
    return python


def of_revision(revision: str, folder: Path) -> Path:
    """Unpack a revision of this repository's history into a folder; return the folder."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], capture_output=True, check=True)
    subprocess.run(["tar", "--extract", "--directory", str(folder)], input=archive.stdout, check=True)
    return folder


def has_revision(revision: str) -> bool:
    """Return whether this is a clone whose history has the revision; a source archive and a shallow clone have not."""
    command = ["git", "-C", str(ROOT), "cat-file", "-e", f"{revision}^{{commit}}"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def last_tag() -> str:
    """Return the last tag of a release before this revision; "" if there is none."""
    command = ["git", "-C", str(ROOT), "describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
