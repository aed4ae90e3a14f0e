"""Which licence each library of a release has, and whether it permits the release: nothing under the GPL.

A library states its licence as an SPDX expression, in words or as a classifier. Words and classifiers are mapped here
to SPDX; a statement that is in none of the tables is refused, because nobody has read it.

Some wheels (numpy, scipy, scikit-learn) contain the run-time libraries of GCC. Their licence is the GPL with an
exception that permits this (GPL-3.0-or-later WITH GCC-exception-3.1); the wheels name it in their licence files.

https://spdx.org/licenses/; https://peps.python.org/pep-0639/
"""

import re
import shutil
import zipfile
from collections.abc import Iterable
from email.message import Message
from pathlib import Path, PurePosixPath

from federation.delivery import reasons
from federation.delivery.wheelhouse import metadata_of
from models.refusal import Refusal

PERMITTED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("ISC", "LicenseRef-Public-Domain", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib"),
    "MPL-2.0",  # asks for the source of changed files; nothing is changed
    "LicenseRef-NVIDIA-Proprietary",  # CUDA, in bundles for NVIDIA GPUs only: may be passed on with an application
}
# In the libraries' own words, in lower case, from the fields License and Classifier.
_WORDS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd, public domain": "BSD-2-Clause AND LicenseRef-Public-Domain",
    "isc license": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "psf-2.0": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
}
# Read in the library itself, which states nothing in its metadata. cuda-toolkit has no files: it names other libraries.
_READ = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary", "huey": "MIT", "sigstore-models": "MIT", "skops": "MIT"}
_SHORT = 80  # characters; a longer statement is the text of a licence
_FILE = re.compile(r"(licen[cs]e|copying|notice)", re.I)


def licence_of(metadata: Message) -> str:
    """Return a library's licence as an SPDX expression, or what it states in other words, or ""."""
    stated = str(metadata.get("License-Expression") or "")
    if stated:
        return stated
    words = str(metadata.get("License") or "").strip()
    one_line = "\n" not in words and len(words) < _SHORT
    if words in PERMITTED or (one_line and (" OR " in words or "GPL" in words)):
        return words
    classifiers = [
        str(each).rpartition(" :: ")[2] for each in metadata.get_all("Classifier", ()) if "License ::" in each
    ]
    for known in ([words], classifiers):
        found = [_WORDS[each.lower()] for each in known if each.lower() in _WORDS]
        if found and len(found) == len(known):
            return " AND ".join(found)
    return _READ.get(str(metadata["Name"]).lower(), words.partition("\n")[0][:_SHORT])


def permits(licence: str) -> bool:
    """Return whether an SPDX expression permits the release: one of its alternatives (OR), or all parts (AND)."""
    alternatives = [licence] if "(" in licence else licence.split(" OR ")
    return any(set(re.split(r" AND | OR ", re.sub(r"[()]", "", each))) <= PERMITTED for each in alternatives)


def check_licence(metadata: Message) -> str:
    """Return a library's licence. Raises Refusal E_LICENCE if it does not permit the release."""
    licence = licence_of(metadata)
    if not permits(licence):
        raise Refusal(reasons.LICENCE, library=str(metadata["Name"]), licence=licence or "not stated")
    return licence


def collect_licences(wheels: Iterable[Path], folder: Path, viewer: Path) -> None:
    """Write the licence files of each wheel and of the viewer to `folder`, and a table of all, licences.txt.

    Raises Refusal E_LICENCE.
    """
    folder.mkdir()
    lines = set()
    for wheel in wheels:
        metadata = metadata_of(wheel)
        place = f"{metadata['Name']}-{metadata['Version']}"
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if _is_licence(name)]
            for name in names:
                kept = folder / place / name.replace("/", "_")
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(archive.read(name))
        lines.add(f"{place}\t{check_licence(metadata)}\t{'' if names else 'the wheel holds no licence file'}".rstrip())
    if viewer.exists():
        shutil.copyfile(viewer, folder / viewer.name)
    (folder / "licences.txt").write_text("\n".join(sorted(lines, key=str.lower)) + "\n", encoding="utf-8")


def _is_licence(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(_FILE.match(path.name)) and path.suffix not in {".py", ".pyc", ".pyi"} and not name.endswith("/")
