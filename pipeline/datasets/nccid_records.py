"""The clinical files of NCCID: one patient's swabs and course; ambiguous dates are not used.

Three sources describe the date formats and contradict each other: the data set's questions and answers
(nhsx.github.io/covid-chest-imaging-database/faq.html), NHSX's cleaning tool (github.com/nhsx/nccid-cleaning), and the
practice of submitting centres. The rules here:

1. An ISO date is used, also after a text in brackets: "[text] - 2020-03-27".
2. A date with slashes is used if it has only one reading: its day is over 12, or equals its month.
3. Any other date with slashes is read in the order of its field, if the sources agree on one (AGREED_ORDER) and the
   centre wrote no date in that field which contradicts it.
4. All other dates are ambiguous and are not used.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import product
from typing import Any, Literal

from models.refusal import Reason
from pipeline.datasets import reasons
from pipeline.records.outcomes import Outcome
from pipeline.system.findings import Finding

Order = Literal["day first", "month first"]
Swab = tuple[date, bool]  # day of collection, positive
AGREED_ORDER: dict[str, Order] = {
    "SwabDate": "day first",
    "Date of acquisition of 1st RT-PCR": "month first",
    "Date of acquisition of 2nd RT-PCR": "month first",
}
_POSITIVE_SWAB = "Date of Positive Covid Swab"
_ALIVE = "Date last known alive"
_SWABS = {  # result and day of collection; the day of the result is a different field
    "1st RT-PCR result": "Date of acquisition of 1st RT-PCR",
    "2nd RT-PCR result": "Date of acquisition of 2nd RT-PCR",
    "SwabStatus": "SwabDate",
}
_ISO = re.compile(r"(?:\[[^\]]*\] - )?(\d{4})-(\d{2})-(\d{2})(?:[T ]00:00(?::00)?)?", flags=re.ASCII)
_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/(?:20)?(\d{2})", flags=re.ASCII)
_BITS = {"0": False, "0.0": False, "1": True, "1.0": True}
_RESULTS = {**_BITS, "RNA DETECTED (SARS-CoV-2)": True}


@dataclass(frozen=True)
class Clinical:
    """One patient's newest clinical files, {} if there is none.

    `data`: of the cohort with a positive swab. `status`: of a single swab, usually negative.
    """

    patient_id: str
    data: Mapping[str, Any]
    status: Mapping[str, Any]


def trusted_orders(patients: Iterable[Clinical]) -> dict[str, Order]:
    """Return AGREED_ORDER without the fields in which the centre of these patients used another order."""
    records = [record for patient in patients for record in (patient.data, patient.status)]
    return {
        name: order
        for name, order in AGREED_ORDER.items()
        if all(order in readings for record in records if (readings := _slashed(_text(record, name))))
    }


def read_swabs(patient: Clinical, orders: Mapping[str, Order]) -> tuple[list[Swab], list[Finding]]:
    """Return the patient's reliable swabs, and findings for what could not be read.

    Nobody becomes negative because something was left out. Negative swabs do not count if another swab cannot be read,
    or if a patient of the positive cohort (with a `data` file) has no readable positive swab.
    """
    dated = [(patient.data, _POSITIVE_SWAB, True)] if _text(patient.data, _POSITIVE_SWAB) else []
    findings = []
    for record, (result, day) in product((patient.data, patient.status), _SWABS.items()):
        text = _text(record, result)
        if text in _RESULTS:
            dated.append((record, day, _RESULTS[text]))
        elif text:
            findings.append(Finding(reasons.SWAB_RESULT, patient.patient_id, text))
    swabs = []
    for record, name, is_positive in dated:
        read = _day(record, name, orders)
        if isinstance(read, date):
            swabs.append((read, is_positive))
        else:
            findings.append(Finding(read, patient.patient_id, f"{name}: {_text(record, name)}"))
    positive = [swab for swab in swabs if swab[1]]
    proven = positive if findings or (patient.data and not positive) else swabs
    return proven, findings if proven else [*findings, Finding(reasons.SWABS, patient.patient_id)]


def read_outcome(patient: Clinical, orders: Mapping[str, Order]) -> tuple[Outcome | None, list[Finding]]:
    """Return the patient's course, None if unknown, and findings for what could not be read.

    The course is unknown if an event has no readable day, if a day is given for an event that is denied, or if
    intubation is not recorded: none of these may look like a mild course. If death is not recorded, the last day on
    which the patient was known to be alive ends the follow-up.
    """
    data = patient.data
    intubated = _event(data, "Intubation", "Date of intubation", orders)
    is_known = _text(data, "Death") in _BITS or _text(data, "Date of death")
    died = _event(data, "Death", "Date of death", orders) if is_known else None
    alive = _day(data, _ALIVE, orders) if _text(data, _ALIVE) else None
    findings = [Finding(day, patient.patient_id) for day in (intubated, died, alive) if isinstance(day, Reason)]
    if not data or isinstance(intubated, Reason) or isinstance(died, Reason):
        return None, findings if data else []
    return Outcome(patient.patient_id, intubated, died, None if isinstance(alive, Reason) else alive), findings


def _event(record: Mapping[str, Any], name: str, day: str, orders: Mapping[str, Order]) -> date | Reason | None:
    """Return the day of an event, None if it is denied, or why it is unknown."""
    happened = _BITS.get(_text(record, name))
    if _text(record, day) and happened is not False:
        return _day(record, day, orders)
    return None if happened is False and not _text(record, day) else reasons.EVENT_DATE


def _day(record: Mapping[str, Any], name: str, orders: Mapping[str, Order]) -> date | Reason:
    """Return the day in a field by the rules above, or why it cannot be read."""
    text = _text(record, name)
    if iso := _ISO.fullmatch(text):
        return _date(*map(int, iso.groups())) or reasons.UNREADABLE_DATE
    readings = _slashed(text)
    if len(set(readings.values())) == 1:
        return next(iter(readings.values()))
    if (order := orders.get(name)) and order in readings:
        return readings[order]
    return reasons.AMBIGUOUS_DATE if readings else reasons.UNREADABLE_DATE


def _slashed(text: str) -> dict[Order, date]:
    """Return the possible readings of a date with slashes, by order."""
    match = _SLASHED.fullmatch(text)
    if not match:
        return {}
    first, second, year = (int(group) for group in match.groups())
    orders: tuple[tuple[Order, date | None], ...] = (
        ("day first", _date(2000 + year, second, first)),
        ("month first", _date(2000 + year, first, second)),
    )
    return {order: day for order, day in orders if day}


def _date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return "" if value is None else str(value).strip()
