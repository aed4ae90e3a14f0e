"""Common functions of the importers: checking the published layout, and creating site folders that link to it."""

import csv
import hashlib
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import usual_studies
from models.refusal import Reason, Refusal
from pipeline.datasets import reasons
from pipeline.records import reasons as records_reasons
from pipeline.records.csv_tables import CsvTable, read_rows
from pipeline.site.folder import init_site
from pipeline.system.findings import Finding

Progress = Callable[[int, int], None]
LABEL_COLUMNS = ("patient_id", "pcr_positive", "severe")
_TABLE_FAULTS = {
    records_reasons.TABLE_FILE: "it cannot be opened",
    records_reasons.ENCODING: "its text is not UTF-8",
    records_reasons.SCHEMA: "",  # the refusal's own words
}


@dataclass(frozen=True)
class Imported:
    """The result of an import: the number of patients of each new site, and why others were left out."""

    sites: dict[str, int]
    findings: list[Finding]

    @property
    def counts(self) -> list[tuple[Reason, int]]:
        """Each reason with its number of findings, most frequent first."""
        return Counter(finding.reason for finding in self.findings).most_common()


def check_layout(data_set: str, folder: Path, needed: Iterable[str]) -> None:
    """Check that the published layout is complete. Raises Refusal E_LAYOUT."""
    for name in needed:
        if not (folder / name).exists():
            raise Refusal(reasons.LAYOUT, data_set=data_set, missing=name, private=str(folder))


def check_out(out: Path, folder: Path) -> None:
    """Check that `out` is new or empty, and outside the data set. Raises Refusal E_IMPORT_OUT."""
    if out.resolve().is_relative_to(folder.resolve()) or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise Refusal(reasons.IMPORT_OUT, private=str(out))


def read_labels_table(
    table: CsvTable, columns: Sequence[str], allowed: Iterable[str]
) -> tuple[dict[str, list[str]], list[Finding]]:
    """Read a published label table: cells by patient, the first of `columns`; other cells must be in `allowed`.

    Raises Refusal: E_IMPORT_TABLE, E_IMPORT_DUPLICATE, E_IMPORT_LABEL, E_FILE_CUT.
    """
    try:
        rows, findings = read_rows(table, "labels", columns)
    except Refusal as refusal:  # what `read_rows` says is for a hospital's own table, declared in its site.toml
        if refusal.reason not in _TABLE_FAULTS:
            raise
        fault = _TABLE_FAULTS[refusal.reason] or refusal.numbers["fault"]
        raise Refusal(reasons.IMPORT_TABLE, fault=fault, private=refusal.private) from None
    times = Counter(patient_id for patient_id, *_ in rows)
    repeated = [patient_id for patient_id, count in times.items() if count > 1]
    if repeated:
        raise Refusal(reasons.IMPORT_DUPLICATE, patients=len(repeated), private=", ".join(repeated[:10]))
    valid = set(allowed)
    wrong = [patient_id for patient_id, *cells in rows if not valid.issuperset(cells)]
    if wrong:
        raise Refusal(reasons.IMPORT_LABEL, rows=len(wrong), private=", ".join(wrong[:10]))
    return {patient_id: cells for patient_id, *cells in rows}, findings


def matched(data_set: str, rows: Mapping[str, object], scans: Mapping[str, Path], findings: list[Finding]) -> list[str]:
    """Return the patients with both a row and a scan, sorted; the others become findings.

    Raises Refusal E_LAYOUT if there are none.
    """
    both = sorted(rows.keys() & scans.keys())
    if not both:
        raise Refusal(reasons.LAYOUT, data_set=data_set, missing="a scan for any row of the labels")
    findings += [Finding(reasons.NO_SCAN, patient_id) for patient_id in sorted(rows.keys() - scans.keys())]
    findings += [Finding(records_reasons.NO_LABEL, patient_id) for patient_id in sorted(scans.keys() - rows.keys())]
    return both


def published_key(site: str) -> bytes:
    """Return a pseudonym key that gives the same training and test patients in every import of data that all may have.

    Anyone can compute it, and with it the pseudonyms of published identifiers.
    """
    return hashlib.sha256(f"public data set, site {site}".encode()).digest()


def make_site(
    folder: Path,
    about: str,
    tables: str,
    links: Mapping[str, Path],
    *,
    time_zone: str = "",
    key: bytes | None = None,
) -> None:
    """Create one site: its settings, its key, and links to its scans by their names under ct/.

    `about`: a comment in site.toml about the origin of the patients. `tables`: of site.toml, besides [site].
    `time_zone`: of the hospitals; needed if their scans may state an offset from UTC and labels depend on days.
    `key`: the pseudonym key; a new random one unless the data are public (`published_key`).
    """
    comment = textwrap.fill(about, width=118, initial_indent="# ", subsequent_indent="# ")
    name = json.dumps(folder.name)
    zone = f"time_zone = {json.dumps(time_zone)}\n" if time_zone else ""
    text = f"{comment}\n\n[site]\nname = {name}\nmin_patients = 10\n{zone}\n{tables}\n{_STUDIES}{_JOINING}"
    init_site(folder, text, key=key)
    for link, target in links.items():
        place = folder / "ct" / link
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve(), target_is_directory=target.is_dir())


_STUDIES = f"""[gateway]
# The studies of this release that may run here; `fedthorax node studies` shows what each requires.
studies = {json.dumps(usual_studies())}

"""
_JOINING = """[server]
# Address of the study's server, "host:port", and the certificate of its authority (from the study's office).
address = ""
ca_certificate = "keys/ca.crt"
"""


def labels_table(severe_means: str) -> str:
    """Return the table [labels] of a site with labels in labels.csv."""
    return f'[labels]\nfile = "labels.csv"\nsevere_means = {json.dumps(severe_means)}\n'


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write one of a site's CSV files."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
