"""The handshake before round 1: each site describes itself; `site_agreement` checks that all sites agree.

A site reports four things: its software version, the digest of its data contract, the digest of the golden volume after
its own preprocessing, and the approximate number of its training patients (of a pretraining, of the scans that it
uses). Sites that differ in one of the first three would train on different data under one name. Works without torch
where it is imported, for the gateway.
"""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import BaseModel

from federation.protocol.patient_counts import count_patients
from federation.protocol.reply_validation import Expected
from federation.system.digests import SHA256
from pipeline.site.folder import Site

if TYPE_CHECKING:
    from federation.protocol.study_config import Study

KEYS = ("version", "contract", "golden", "patients")
NOT_REPORTED = "not told"
_MANY = 10_000
_BOUNDS = (20, 50, 100, 200, 500, 1000)  # patients
BANDS = frozenset(
    (
        *(f"under {bound}" for bound in _BOUNDS),
        *(f"{low}-{high - 1}" for low, high in pairwise(_BOUNDS)),
        f"{_BOUNDS[-1]} or more",
        NOT_REPORTED,
    )
)
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+]{0,39}")


class SiteAbout(BaseModel, extra="forbid"):
    """What a site reported in the handshake. `patients`: a band such as "50-99"."""

    version: str
    contract: str
    golden: str
    patients: str


def answer(site: Site, study: "Study") -> dict[str, str]:
    """Return this site's description of itself, by KEYS.

    Raises Refusal E_NO_LUNGS or E_NOT_A_WHOLE_CHEST if its preprocessing does not accept the golden volume.
    """
    from pipeline.doctor.digest import contract_digest
    from pipeline.preprocessing.golden_volume import golden_digest

    learnt_from = count_patients(site, pretrains=study.network.pretrains).of_split.get("train", 0)
    return {
        "version": version("fedthorax"),
        "contract": contract_digest(site),
        "golden": golden_digest(study.preprocessing),
        "patients": band(learnt_from, site.settings.site.min_patients),
    }


def band(count: int, min_patients: int) -> str:
    """Return the band (one of BANDS) of a number of patients; no band distinguishes numbers below `min_patients`."""
    bounds = [bound for bound in _BOUNDS if bound >= min_patients]
    if not bounds:
        return NOT_REPORTED
    if count < bounds[0]:
        return f"under {bounds[0]}"
    below = (f"{low}-{high - 1}" for low, high in pairwise(bounds) if count < high)
    return next(below, f"{bounds[-1]} or more")


def most_patients(band: str) -> int:
    """Return the largest number of patients in a band; a large number if the band has no end."""
    numbers = [int(number) for number in re.findall(r"\d+", band)]
    return max(numbers) if numbers and not band.endswith("more") else _MANY


def is_answer(record: Mapping[str, object]) -> bool:
    """Tell whether a record has exactly the fields of `answer`, each in its format."""
    fits: dict[str, Callable[[str], object]] = {
        "version": _VERSION.fullmatch,
        "contract": SHA256.fullmatch,
        "golden": SHA256.fullmatch,
        "patients": BANDS.__contains__,
    }
    return set(record) == set(KEYS) and all(
        isinstance(value, str) and fits[key](value) for key, value in record.items()
    )


EXPECTED = Expected({}, {}, {}, 0, about=is_answer)
