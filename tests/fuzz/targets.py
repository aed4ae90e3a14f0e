"""The parsers of foreign files, each as a function of bytes that either returns or raises a Refusal.

Anything else is a finding: another exception, more than five seconds, more than half a gigabyte, or a crash of a
library. The gateway's targets are no parsers: their inputs are decisions of a hostile server or app, and they must
return.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

TODAY = date(2020, 5, 1)
Parse = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """`prepare` creates the parser in a folder that it may use. `seeds`: valid inputs. `runs`: the number of inputs to
    try.

    `file`: the name of the file in which the parser expects an input.
    """

    file: str
    runs: int
    prepare: Callable[[Path], Parse]
    seeds: Callable[[Path], list[bytes]]


# --- DICOM and archives -----------------------------------------------------------------------------------


def dicom_seeds(folder: Path, *, deflated: bool = True) -> list[bytes]:
    """Return one small slice in every encoding that can be written here, and multi-frame images."""
    from pydicom import uid

    from tests.helpers.dicom_files import body, ct_slice, save, write_series
    from tests.helpers.enhanced import enhanced, legacy_converted, save_frames, single_frames

    seeds = []
    for syntax in (
        *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian),
        *(uid.ExplicitVRBigEndian, uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless),
    ):
        path = folder / "seed.dcm"
        pixels = body(rows=40, columns=36)[0]  # JPEG 2000 needs at least this size
        save(ct_slice(pixels, position_mm=(0, 0, 0), PixelPaddingValue=-2000), path, transfer_syntax=syntax)
        if deflated or not syntax.is_deflated:
            seeds.append(path.read_bytes())
    images = single_frames(write_series(folder / "frames", body(slices=4)))
    for make, syntax in ((enhanced, uid.RLELossless), (legacy_converted, uid.ImplicitVRLittleEndian)):
        save_frames(make(images), path, syntax=syntax)
        seeds.append(path.read_bytes())
    shutil.rmtree(folder / "frames")
    return seeds


def strippable_seeds(folder: Path) -> list[bytes]:
    """As `dicom_seeds`, without deflated files: these are refused and not stripped."""
    return dicom_seeds(folder, deflated=False)


def read_dicom(folder: Path) -> Parse:
    from pipeline.imaging.ct_slice import decode_slice, inspect_slice
    from pipeline.imaging.discovery import find_series
    from pipeline.imaging.pydicom_silence import quiet_pydicom

    @quiet_pydicom()
    def parse(path: Path) -> None:
        find_series(path)
        decode_slice(inspect_slice(path))

    return parse


def strip_dicom(folder: Path) -> Parse:
    from pipeline.pacs.deidentify import strip
    from pipeline.site.folder import init_site, site_settings

    site = init_site(folder / "site", site_settings(None, name="north"))
    return lambda path: strip(path.read_bytes(), site)


def zip_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for files in ({}, {"1": b"first", "a/2": b"second" * 100}, {"1.dcm": dicom_seeds(folder)[0]}):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        seeds.append(packed.getvalue())
    return seeds


def unpack(folder: Path) -> Parse:
    from pipeline.imaging.archive import open_images
    from pipeline.imaging.discovery import find_series

    def parse(path: Path) -> None:
        with open_images(path) as images:
            find_series(images)

    return parse


# --- volume files -----------------------------------------------------------------------------------------


def volume_seeds(suffix: str, *, packed: bool) -> Callable[[Path], list[bytes]]:
    def seeds(folder: Path) -> list[bytes]:
        from tests.helpers.dicom_files import body
        from tests.helpers.volume_images import image, save

        return [save(image(body()), folder / f"seed{suffix}", packed=packed).read_bytes()]

    return seeds


def read_volume(folder: Path) -> Parse:
    from pipeline.imaging.nifti_reader import find_volume_files, read_volume_file

    def parse(path: Path) -> None:
        find_volume_files(path)
        read_volume_file(path)

    return parse


# --- lung masks -------------------------------------------------------------------------------------------


def mask_seeds(folder: Path) -> list[bytes]:
    import numpy as np

    from tests.helpers.lung_masks import write_nifti

    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:4, 1:4, 1:3], labels[1:4, 1:4, 4:6] = 1, 2
    return [write_nifti(folder / "seed.nii", labels, np.diag([1.0, 2.0, 3.0, 1.0])).read_bytes()]


def segmentation_scan(folder: Path) -> list[Path]:
    from tests.helpers.dicom_files import body, write_series

    def with_frame(image: Any, _: int) -> None:
        image.FrameOfReferenceUID = "2.25.1"

    return write_series(folder / "scan", body(4, 8, 8), edit=with_frame)


def segmentation_seeds(folder: Path) -> list[bytes]:
    import numpy as np

    from tests.helpers.lung_masks import LEFT_LUNG, RIGHT_LUNG, write_segmentation

    mask = np.zeros((4, 8, 8), bool)
    mask[1:3, 2:6, 1:3] = True
    path = folder / "seed.dcm"
    segments = {(RIGHT_LUNG,): mask, (LEFT_LUNG,): mask[:, :, ::-1]}
    return [write_segmentation(path, segmentation_scan(folder), segments).read_bytes()]


def read_mask(folder: Path) -> Parse:
    from pipeline.imaging.discovery import find_series
    from pipeline.imaging.mask_reader import read_lung_mask

    segmentation_scan(folder)
    (series,), _ = find_series(folder / "scan")
    return lambda path: read_lung_mask(path, series)


# --- the laboratory ---------------------------------------------------------------------------------------


def csv_seeds(folder: Path) -> list[bytes]:
    rows = [f'A{number},2020-04-{number:02}T10:00,"Detected"' for number in range(1, 10)]
    return ["\r\n".join(["patient_id,collected,result", *rows]).encode(), b"\xef\xbb\xbfpatient_id,collected,result\n"]


def read_csv(folder: Path) -> Parse:
    from pipeline.records.laboratory import CsvLaboratory, read_pcr

    return lambda path: read_pcr(CsvLaboratory(file=path), today=TODAY)


def outcome_seeds(folder: Path) -> list[bytes]:
    rows = [f"A{number},,2020-04-{number:02},2020-04-30" for number in range(1, 10)]
    return ["\n".join(["patient_id,intubated,died,followed_until", *rows]).encode()]


def read_outcomes(folder: Path) -> Parse:
    from pipeline.records.outcomes import OutcomeFile
    from pipeline.records.outcomes import read_outcomes as read

    return lambda path: read(OutcomeFile(file=path), today=TODAY)


def hl7_seeds(folder: Path) -> list[bytes]:
    from tests.pipeline.records.laboratory import test_hl7 as known

    texts = (known.HOSPITAL_251, known.OLD_23, known.TEXT_REPORT, known.TWO_SPECIMENS)
    return [text.encode("latin-1") for text in texts]


def read_hl7(folder: Path) -> Parse:
    from pipeline.records.laboratory import Hl7Laboratory, read_pcr

    def parse(path: Path) -> None:
        table = Hl7Laboratory(format="hl7", file=path, encoding="latin-1", tests=["COVPCR"], max_unmapped_percent=100)
        read_pcr(table, time_zone="Europe/Paris", today=TODAY)

    return parse


def fhir_seeds(folder: Path) -> list[bytes]:
    from tests.pipeline.records.laboratory import test_fhir as known

    everything = [known.patient("A"), known.specimen("s", "2020-04-01"), known.observation("A")]
    return [json.dumps(each).encode() for each in (known.bundle(*everything), everything)]


def read_fhir(folder: Path) -> Parse:
    from pipeline.records.laboratory import FhirLaboratory, read_pcr

    return lambda path: read_pcr(FhirLaboratory(format="fhir", file=path), time_zone="Europe/Paris", today=TODAY)


def read_received(folder: Path) -> Parse:
    """Judge an input as a received message, and acknowledge it."""
    from tests.pipeline.feeds.test_acknowledgement import answer

    return lambda path: answer(path.read_bytes())


def course_seeds(folder: Path) -> list[bytes]:
    from tests.pipeline.records.test_fhir_histories import GOOD, condition

    return [json.dumps(each).encode() for each in ([*GOOD, condition("G1")], GOOD[:2])]


def read_courses(folder: Path) -> Parse:
    from pipeline.records.outcomes import FhirOutcomes
    from pipeline.records.outcomes import read_outcomes as read
    from tests.pipeline.records.test_fhir_histories import CODES

    declared = {"format": "fhir", "from_date": "2020-03-01", "codes": CODES, "may_lack_events": True}

    def parse(path: Path) -> None:
        read(FhirOutcomes.model_validate({**declared, "file": path}), time_zone="Europe/Paris", today=TODAY)

    return parse


# --- the gateway ------------------------------------------------------------------------------------------


def random_seeds(folder: Path) -> list[bytes]:
    """Return random bytes: a scenario reads its input as decisions, so any bytes are valid."""
    return [Random(number).randbytes(64) for number in range(32)]


def gateway_with(hostile: str) -> Callable[[Path], Parse]:
    """Run the gateway between a server and a node, of which `hostile` names the hostile one; see tests/fuzz/gateway."""

    def prepare(folder: Path) -> Parse:
        from tests.fuzz.gateway import scenarios
        from tests.fuzz.gateway.steady import Steady

        return Steady(folder, getattr(scenarios, f"hostile_{hostile}"))

    return prepare


TARGETS = {
    "gateway-server": Target("input", 20_000, gateway_with("server"), random_seeds),
    "gateway-app": Target("input", 20_000, gateway_with("app"), random_seeds),
    "zip": Target("input.zip", 40_000, unpack, zip_seeds),
    "dicom": Target("input.dcm", 25_000, read_dicom, dicom_seeds),
    "strip": Target("input.dcm", 60_000, strip_dicom, strippable_seeds),
    "nifti": Target("input.nii", 150_000, read_volume, volume_seeds(".nii", packed=False)),
    "nifti-packed": Target("input.nii.gz", 100_000, read_volume, volume_seeds(".nii.gz", packed=False)),
    "metaimage": Target("input.mha", 80_000, read_volume, volume_seeds(".mha", packed=True)),
    "mask": Target("input.nii", 100_000, read_mask, mask_seeds),
    "segmentation": Target("input.dcm", 20_000, read_mask, segmentation_seeds),
    "csv": Target("input.csv", 300_000, read_csv, csv_seeds),
    "outcomes": Target("input.csv", 500_000, read_outcomes, outcome_seeds),
    "hl7": Target("input.hl7", 40_000, read_hl7, hl7_seeds),
    "fhir": Target("input.json", 200_000, read_fhir, fhir_seeds),
    "received": Target("input.hl7", 100_000, read_received, hl7_seeds),
    "courses": Target("input.json", 200_000, read_courses, course_seeds),
}
