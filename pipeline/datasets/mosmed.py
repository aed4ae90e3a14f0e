"""MosMedData: 1110 CTs of Moscow's hospitals, by extent of findings (Morozov et al. 2020, arXiv 2005.06465).

    DIR/studies/CT-<k>/<study_id>.nii.gz    every tenth slice, about 8 mm apart; one study per patient
    DIR/dataset_registry.csv                study_id, category (CT-0 to CT-4); the .xlsx of the same name is not read

Licence of the data: CC BY-NC-ND 3.0. There are no PCR results and no outcomes. A radiologist's estimate of the affected
part of the lungs replaces severity (CT-1 under a quarter, CT-2 under half, CT-3 under three quarters, CT-4 more); this
differs from intubation or death.
"""

from pathlib import Path

from pipeline.datasets.common import (
    LABEL_COLUMNS,
    Imported,
    Progress,
    check_layout,
    check_out,
    labels_table,
    make_site,
    matched,
    published_key,
    read_labels_table,
    write_table,
)
from pipeline.records.csv_tables import CsvTable

SITE = "mosmed"
SEVERE = {"CT-0": "", "CT-1": "0", "CT-2": "0", "CT-3": "1", "CT-4": "1"}
SEVERE_MEANS = "more than half of the lungs affected on CT (MosMedData, CT-3 and CT-4): an extent, not an outcome"
ABOUT = (
    "Made from MosMedData (CC BY-NC-ND 3.0), which names no hospitals: one site. It has no PCR results, no outcomes. "
    "Severe stands for CT-3 and CT-4 (more than half of the lungs affected) against CT-1 and CT-2; scans without "
    "findings (CT-0) have no label. Only every tenth slice was published, so the slices are thick."
)
_SUFFIX = ".nii.gz"


def import_mosmed(folder: Path, out: Path, *, progress: Progress) -> Imported:
    """Create one site folder under `out`.

    Raises Refusal: E_LAYOUT, E_IMPORT_OUT, E_IMPORT_TABLE, E_IMPORT_DUPLICATE, E_IMPORT_LABEL, E_FILE_CUT.
    Findings: E_NO_SCAN, E_NO_LABEL, E_ROW, E_NO_IDENTIFIER.
    """
    check_layout("MosMedData", folder, ("dataset_registry.csv", "studies"))
    check_out(out, folder)
    progress(0, 1)
    table = CsvTable(file=folder / "dataset_registry.csv", patient_id="study_id")
    categories, findings = read_labels_table(table, ("study_id", "category"), SEVERE)
    # The category is part of the key: a scan in another folder than in the registry is not matched.
    rows = {f"{category}/{study}": (study, "", SEVERE[category]) for study, (category,) in categories.items()}
    files = sorted((folder / "studies").glob(f"CT-*/*{_SUFFIX}"))
    scans = {f"{file.parent.name}/{file.name.removesuffix(_SUFFIX)}": file for file in files}
    places = matched("MosMedData", rows, scans, findings)
    links = {scans[place].name: scans[place] for place in places}
    make_site(out / SITE, ABOUT, labels_table(SEVERE_MEANS), links, key=published_key(SITE))
    write_table(out / SITE / "labels.csv", LABEL_COLUMNS, [rows[place] for place in places])
    progress(1, 1)
    return Imported({SITE: len(places)}, findings)
