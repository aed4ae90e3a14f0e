"""A small signed release, and a hospital whose patients without labels can adapt it."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.adaptation import Adaptation
from models.calibration import Platt
from models.description import Description
from models.familiarity import Familiarity, appearance_features
from models.network import build_network
from models.network_settings import LABELS, NetworkSettings
from models.operating_points import Evidence, OperatingPoint
from models.provenance import Provenance, SiteRecord
from models.release import Release, load_release, save_release
from models.signature import new_private_key, public_key, sign
from pipeline.cohort.store import Cohort, Scan, UnlabelledRow
from pipeline.cohort.tensor_files import save_tensor
from pipeline.preprocessing.preprocess_settings import settings_digest
from tests.attacks.cohort import PREPROCESSING, Hospital, draw_patients
from tests.helpers.descriptions import description

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)
_FIGURES = {f"auroc_{label}{end}": 0.8 for label in LABELS for end in ("", "_low", "_high")}
_EVIDENCE = Evidence(value=0.95, low=0.85, high=0.99, positives=60, negatives=60, sites=3)

Tensors = Sequence[NDArray[np.float16]]


def tensors(count: int, *, seed: int = 7) -> list[NDArray[np.float16]]:
    """Scans of as many patients, all of one kind of scanner."""
    return [patient.tensor for patient in draw_patients(seed, {"train": count})]


def parent_description(**changes: Any) -> Description:
    """The description of a release with operating points and a limit for unfamiliar scans."""
    looks = np.array([appearance_features(tensor.astype(np.float32)) for tensor in tensors(40, seed=3)])
    mean, variance = looks.mean(axis=0), looks.var(axis=0)
    site = SiteRecord(
        patients="", software="", trained=True, rounds=1, dropouts={}, figures=dict(_FIGURES), left_out={}
    )
    fields: dict[str, Any] = {
        "network": SMALL,
        "preprocessing": PREPROCESSING.model_dump(mode="json"),
        "calibration": dict.fromkeys(LABELS, Platt(slope=1.1, intercept=0.1, covariance=(0.01, 0.0, 0.02))),
        "operating_points": {
            "severe": {
                name: OperatingPoint(threshold=at, evidence=_EVIDENCE)
                for name, at in (("rule_out", 0.3), ("rule_in", 0.7))
            }
        },
        "familiarity": Familiarity(mean=tuple(mean.tolist()), variance=tuple(variance.tolist()), limit=4.0, sites=3),
        "provenance": Provenance(
            **{"candidate": "", "seed": 1, "rounds_planned": 1, "rounds_lost": 0, "stopped_early": False},
            **{"strategy_options": {}, "sites": {"coast": site}, "audit": None, "study": {}},
        ),
    }
    return description(**(fields | changes))


def adaptation() -> Adaptation:
    """An adaptation of a parent with the SHA-256 aaa…, to 64 scans."""
    return Adaptation(
        **{"parent": "a" * 64, "parent_signed_by": "b" * 64, "site": "north", "adapted_on": date(2026, 1, 2)},
        **{"software": "0.1.0", "scans": 64, "found": 64, "unfamiliar": 0},
    )


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a private key and its public key."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(new_private_key())
    public.write_bytes(public_key(private))
    return private, public


def make_parent(folder: Path, key: tuple[Path, Path], **changes: Any) -> Release:
    """Write a signed release with random weights, and read it again."""
    described = parent_description(**changes)
    save_release(folder, build_network(described.network, seed=1), described)
    sign(folder, key[0])
    return load_release(folder, [key[1]])


def add_unlabelled(hospital: Hospital, scans: Tensors) -> None:
    """Put patients without labels into the hospital's cohort, beside the others."""
    digest, rows = settings_digest(PREPROCESSING), []
    with Cohort(hospital.site) as cohort:
        for number, tensor in enumerate(scans):
            name = f"u{number:05d}"
            save_tensor(cohort.tensors, f"{name}.npy", tensor)
            cohort.add_scan(Scan(name, digest, None, None, "", name, f"{name}.npy", None))
            rows.append(UnlabelledRow(name, f"{name}.npy"))
        cohort.replace(cohort.patients(), cohort.findings(), cohort.fingerprints(without=()), rows)
