"""Made-up series and scans, for tests of the steps after reading."""

from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.cohort.store import Scan
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.measures import Measures

DAY = datetime(2020, 4, 1, 14, 20)


def series(patient: str = "p", study: str = "1", number: str = "1", **more: Any) -> Series:
    """Create a series of one study of a patient. Its fingerprint consists of all three."""
    values: dict[str, Any] = {
        "files": (Path("ct") / patient / "1.dcm",),
        "patient_id": patient,
        "issuer": "",
        "study_uid": f"{patient}.{study}",
        "series_uid": f"{patient}.{study}.{number}",
        "modality": "CT",
        "age_years": 60.0,
        "sex": "F",
        "acquired": DAY,
        "manufacturer": "",
        "kernel": "",
        "fingerprint": f"{patient}-{study}-{number}",
    }
    values |= more
    return Series(**{"slices": len(values["files"]), **values})


def measures(**more: Any) -> Measures:
    """Create measures of an unremarkable scan."""
    values: dict[str, Any] = {
        "slice_mm": 1.25,
        "pixel_mm": 0.7,
        "thickness_mm": 1.25,
        "slices": 240,
        "lungs_ml": 4200,
        "is_cut": False,
        "air_hu": -998.0,
        "aerated_hu": -905,
        "spine_behind_mm": 31.2,
        "windpipe_above_mm2": 180.0,
        "heart_left": 0.2,
        "position": "HFS",
        "manufacturer": "SIEMENS",
        "kernel": "B30F",
        "sharpness": "soft",
    }
    return Measures(**{**values, **more})


def scan(of: Series, code: str | None = None, **more: Any) -> Scan:
    """Create the result of a series: accepted, or refused with `code`."""
    values: dict[str, Any] = {
        "fingerprint": of.fingerprint,
        "settings": "s",
        "code": code,
        "says": code and "it was refused",
        "flags": "",
        "scan_digest": f"digest of {of.fingerprint}",
        "tensor": None if code else f"{of.fingerprint}.npy",
        "measures": None if code else measures(),
    }
    return Scan(**{**values, **more})
