"""The sites' calibrations that accompany a test, and the check that the test's settings follow from them.

The check keeps a server from asking for figures at thresholds of its own choice: each site's gateway recomputes the
settings from these answers, which must include its own. Imports no scipy, which the gateway does not load.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord

from federation.protocol import reasons
from federation.protocol.metric_allowlist import EXAMPLES, FIGURES
from models.refusal import Refusal

Answer = Mapping[str, float]  # the figures of a site's calibration, including its number of patients
_SECONDS = 120.0
_CLOSE = 1e-3  # tolerance between two machines, whose libraries round differently


def to_record(answers: Sequence[Answer]) -> ConfigRecord:
    """Encode the sites' answers as a record: one list per figure, NaN where a site did not report it."""
    names = sorted({name for each in answers for name in each})
    return ConfigRecord({name: [float(each.get(name, math.nan)) for each in answers] for name in names})


def from_record(record: Mapping[str, Any]) -> Sequence[Answer]:
    """Decode what `to_record` encoded. Raises Refusal E_THRESHOLDS if the record is not valid."""
    known = {*FIGURES["evaluate.calibrate"], EXAMPLES}
    columns = list(record.values())
    good = (
        0 < len(record) <= len(known)
        and set(record) <= known
        and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns)
        and all(type(value) is float for column in columns for value in column)
    )
    if not good:
        raise Refusal(reasons.THRESHOLDS, private="not a record of calibrations")
    answers = [
        {name: value for name, value in zip(record, row, strict=True) if not math.isnan(value)}
        for row in zip(*columns, strict=True)
    ]
    if not answers or not all(map(_is_possible, answers)):
        raise Refusal(reasons.THRESHOLDS, private="an answer with impossible values")
    return answers


def _is_possible(answer: Answer) -> bool:
    table = FIGURES["evaluate.calibrate"]
    in_range = all(table[name].low <= value <= table[name].high for name, value in answer.items() if name != EXAMPLES)
    return in_range and 1 <= answer.get(EXAMPLES, 0) < math.inf


def check_settings(settings: Mapping[str, float], answers: Sequence[Answer], *, is_robust: bool) -> None:
    """Check that the settings follow from the answers. Raises Refusal E_THRESHOLDS."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "federation.protocol.pooled_calibration"],
        input=json.dumps({"answers": list(map(dict, answers)), "is_robust": is_robust}).encode(),
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        raise Refusal(reasons.THRESHOLDS, private=done.stderr.decode(errors="replace")[-2000:])
    found = json.loads(done.stdout)
    alike = set(found) == set(settings) and all(
        math.isclose(settings[name], found[name], rel_tol=_CLOSE, abs_tol=_CLOSE) for name in found
    )
    if not alike:
        raise Refusal(reasons.THRESHOLDS, private="the sites' answers result in other settings")
