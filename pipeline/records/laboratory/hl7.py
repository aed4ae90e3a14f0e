"""Reads raw results from HL7 v2 messages (ORU^R01): files of an interface engine, and the listener's queue."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from models.refusal import Reason, Refusal
from pipeline.records import reasons
from pipeline.records.csv_tables import unreadable
from pipeline.records.laboratory.codes import Code, names_of
from pipeline.records.laboratory.hl7_messages import (
    MAX_HEADER_BYTES,
    BrokenError,
    Header,
    messages,
    moment,
    other_charset,
    other_kind,
    parse,
    part,
    patient_segments,
    repetitions,
    unescaped,
)
from pipeline.records.laboratory.results import (
    Identifier,
    RawResult,
    Reading,
    Status,
    candidates,
    choose,
    counted,
    files_of,
)
from pipeline.records.laboratory.settings import Hl7Laboratory
from pipeline.records.laboratory.times import Clock, hl7_time

if TYPE_CHECKING:
    from hl7 import Message, Segment

CODED, LINES = {"CE", "CWE", "CNE", "CF"}, {"TX", "FT"}
# HL7 table 0085. Statuses that are not listed (I, P, R, S, U) are not final yet. N, O and X never become final.
STATUSES: dict[str, Status] = {
    "F": "final", "V": "final", "A": "corrected", "B": "corrected", "C": "corrected",
    "D": "withdrawn", "N": "withdrawn", "O": "withdrawn", "W": "withdrawn", "X": "withdrawn",
}  # fmt: skip


@dataclass
class _Order:
    """One OBR with its results: each OBX (or several of one text) and the number of specimens before it."""

    patient: Identifier | Reason
    obr: "Segment"
    results: list[tuple[list["Segment"], int]] = field(default_factory=list)
    specimens: list["Segment"] = field(default_factory=list)


def read(table: Hl7Laboratory, clock: Clock, issuer: str) -> Reading:
    """Read the raw results of all messages; each unreadable message is a finding of its patients.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT, E_TIME_ZONE.
    """
    reading = Reading(table)
    others: Counter[str] = Counter()
    charsets: Counter[str] = Counter()
    for path, encoding, is_received in _files(table):
        for number, lines in enumerate(messages(path, encoding, is_received=is_received), start=1):
            reading.units += 1
            where = f"{path.name}, message {number}"
            try:
                message = parse(lines)
                if charset := other_charset(message, lines, encoding):
                    charsets[charset] += 1
                if other := other_kind(message):
                    others[other] += 1
                else:
                    reading.results += _results(message, reading, clock, issuer, where)
            except BrokenError as error:
                reading.findings += unreadable(reasons.HL7, _patients(lines, issuer), f"{where}: {error}")
    for reason, counts in ((reasons.OTHER_MESSAGE, others), (reasons.HL7_CHARSET, charsets)):
        reading.findings += counted(reason, counts)
    return reading


def _files(table: Hl7Laboratory) -> Iterator[tuple[Path, str, bool]]:
    """Yield all files with their encodings, and whether they are queued messages that were received.

    A queued message has the encoding that its own header names (MSH-18).

    Raises Refusal E_TABLE_FILE.
    """
    if table.file is not None:
        yield from ((path, table.encoding, False) for path in files_of(table.file))
    queue = table.listener and table.listener.queue
    for path in files_of(queue) if queue and queue.is_dir() else []:  # there is none before the first start
        try:
            with path.open("rb") as file:
                yield path, Header.of(file.read(MAX_HEADER_BYTES)).encoding(table.encoding), True
        except BrokenError:
            yield path, table.encoding, True  # the reader reports the message
        except OSError as error:
            raise Refusal(reasons.TABLE_FILE, private=str(error), table="laboratory") from error


def check_structure(message: "Message") -> None:
    """Raises BrokenError if the segments of a message are not in an order that this module can read."""
    _orders(message, "")


def _results(message: "Message", reading: Reading, clock: Clock, issuer: str, where: str) -> Iterator[RawResult]:
    """Yield the results of a message.

    A result changed at OBR-22, "results report / status change date/time". OBX-14 and OBX-19, the times of collection
    and analysis, are no version: a correction usually repeats them.
    """
    sent = hl7_time(moment(message[0], 7))
    zone = clock.zone_of(sent)
    for order in _orders(message, issuer):
        changed, changed_until = clock.span(moment(order.obr, 22), zone)
        version = (changed, clock.instant(sent), 0)
        for lines, specimens_before in order.results:
            obx = lines[0]
            test = _test(obx)
            if not reading.wants(test):
                continue
            specimens = order.specimens[specimens_before - 1 : specimens_before] or order.specimens
            collected_text = _collected(specimens, order.obr, obx)
            collected = hl7_time(collected_text, zone)
            for value in _values(lines):
                yield RawResult(
                    patient=order.patient,
                    key=_key(order, specimens, test, obx, collected_text),
                    version=version,
                    changed_until=changed_until,
                    test=test,
                    value=value,
                    status=STATUSES.get(part(obx, 11), "pending"),
                    collected=collected and clock.local(collected),
                    collected_text=collected_text,
                    where=where,
                )


def _orders(message: "Message", issuer: str) -> list[_Order]:
    """Return the orders of a message. Raises BrokenError if a result belongs to no order."""
    orders: list[_Order] = []
    patient: Identifier | Reason = reasons.NO_IDENTIFIER
    for segment in message[1:]:
        name = part(segment, 0)
        if name == "PID":
            patient = choose(identifiers_of(segment), issuer)
        elif name == "OBR":
            orders.append(_Order(patient, segment))
        elif not orders:
            raise BrokenError(f"{name} before OBR")
        elif name == "SPM":
            orders[-1].specimens.append(segment)
        else:
            _add_result(orders[-1], segment)
    return orders


def _add_result(order: _Order, obx: "Segment") -> None:
    """Add a result; a text may have one OBX for each line, with the same test, sub-identifier and status."""

    def what(segment: "Segment") -> list[str]:
        return [part(segment, 2), *(str(segment[n]) if n < len(segment) else "" for n in (3, 4, 11))]

    lines, specimens = order.results[-1] if order.results else ([], 0)
    if lines and part(obx, 2) in LINES and what(lines[0]) == what(obx) and specimens == len(order.specimens):
        lines.append(obx)
    else:
        order.results.append(([obx], len(order.specimens)))


def identifiers_of(pid: "Segment") -> Iterator[Identifier]:
    """Yield the identifiers of a patient (PID-3)."""
    for repetition in range(1, repetitions(pid, 3) + 1):
        names = (part(pid, 3, 4, repetition, sub) for sub in (1, 2))
        yield Identifier(
            part(pid, 3, 1, repetition), tuple(name for name in names if name), part(pid, 3, 5, repetition)
        )


def _patients(lines: Sequence[str], issuer: str) -> set[str]:
    """Return whose message it may be: one that is not well-formed, of which only the PID segments are read."""
    found = (candidates(identifiers_of(segment), issuer) for segment in patient_segments(lines))
    return set[str]().union(*found)


def _collected(specimens: Sequence["Segment"], obr: "Segment", obx: "Segment") -> str:
    """Return the collection time: SPM-17, which is unambiguous, else OBR-7, else OBX-14.

    In the standard, OBR-7 and OBX-14 are the collection time too. OBX-14 is last, because many systems write the time
    of the analysis there. If several specimens have different times, only OBX-14 identifies the right one.
    """
    taken = {moment(specimen, 17) for specimen in specimens} - {""}
    if len(taken) > 1:
        return moment(obx, 14)
    return next((text for text in (*taken, moment(obr, 7), moment(obx, 14)) if text), "")


def _key(
    order: _Order, specimens: Sequence["Segment"], test: Sequence[Code], obx: "Segment", collected_text: str
) -> tuple[str, ...]:
    """Return the key of a result: patient, order number, specimen, test and sub-identifier.

    The order number is the filler's (OBR-3), else the placer's (OBR-2) with the test and the time. The patient is part
    of the key, because some laboratories reuse order numbers.
    """
    patient = order.patient.value if isinstance(order.patient, Identifier) else ""
    filler, placer = (str(order.obr[n]) if n < len(order.obr) else "" for n in (3, 2))
    number = (filler,) if filler else (placer, part(order.obr, 4), collected_text)
    specimen = str(specimens[0][2]) if len(specimens) == 1 and len(specimens[0]) > 2 else ""
    return (patient, *number, specimen, *names_of(test), part(obx, 4))


def _test(obx: "Segment") -> tuple[Code, ...]:
    """Return the test's code and its alternate code (OBX-3)."""
    names = [Code(part(obx, 3, n + 2), part(obx, 3, n), part(obx, 3, n + 1)) for n in (1, 4)]
    return tuple(name for name in names if name.code or name.text)


def _values(lines: Sequence["Segment"]) -> list[tuple[str, ...]]:
    """Return the values (OBX-5): codes and names for each repetition of a coded value, else the whole text."""
    if part(lines[0], 2) in CODED:
        values = [
            tuple(filter(None, (part(lines[0], 5, n, repetition) for n in (1, 2, 4, 5, 9))))
            for repetition in range(1, repetitions(lines[0], 5) + 1)
        ]
        return values or [()]
    texts = [unescaped(str(each), obx) for obx in lines if len(obx) > 5 for each in obx[5]]
    return [(" ".join(texts),)]
