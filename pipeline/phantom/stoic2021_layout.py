"""Synthetic patients in the layout of the public data set STOIC2021, for those who do not have it."""

from pathlib import Path

import numpy as np

from pipeline.datasets.stoic2021 import SYNTHETIC
from pipeline.phantom.generate import make_body
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.patients import draw_patient
from pipeline.phantom.scans import acquire

_SEED = 7
_HOSPITALS = 3  # whose scanners and patients take turns


def synthetic_stoic2021(folder: Path, patients: int) -> None:
    """Write synthetic patients in the layout of STOIC2021.

    The layout is the one that `import_stoic2021` reads. SYNTHETIC.txt says what the folder is. The same number of
    patients gives the same scans and labels.

    Parameters
    ----------
    folder : Path
        The folder of the data set, which is made.
    patients : int
        Number of patients.
    """
    import SimpleITK

    (folder / "data" / "mha").mkdir(parents=True)
    (folder / "metadata").mkdir()
    (folder / SYNTHETIC).write_text("Synthetic patients in the layout of STOIC2021. No scan of the data set is here.\n")
    rows = ["PatientID,probCOVID,probSevere"]
    for number in range(patients):
        rng, at = np.random.default_rng([_SEED, number]), HOSPITALS[number % _HOSPITALS]
        patient = draw_patient(str(number), "SYNTHETIC", at.mix, rng)
        lesions, chance = make_body(patient, at, rng, "template")  # random bodies take ten times as long
        severe = patient.pcr_positive and rng.random() < chance
        z, y, x = at.scanner.grid.spacing_mm
        image = SimpleITK.GetImageFromArray(acquire(lesions.hu, at.scanner, rng).astype(np.int16))
        image.SetSpacing((x, y, z))
        image.SetMetaData("PatientAge", f"{5 + 10 * (patient.age_years // 10):03d}Y")
        image.SetMetaData("PatientSex", patient.sex)
        SimpleITK.WriteImage(image, folder / "data" / "mha" / f"{number}.mha", useCompression=True)
        rows.append(f"{number},{int(patient.pcr_positive)},{int(severe)}")
    (folder / "metadata" / "reference.csv").write_text("\n".join(rows) + "\n")
