"""Takes the parts about some patients out of an HL7 v2 message, and leaves all other bytes as they were sent.

The part about a patient begins with a PID segment and ends before the next one. The segments before the first PID
belong to the message itself.
"""

from collections.abc import Callable
from itertools import pairwise

from pipeline.records.laboratory.hl7 import identifiers_of
from pipeline.records.laboratory.hl7_envelope import FRAMING
from pipeline.records.laboratory.hl7_messages import parse
from pipeline.records.laboratory.results import of_site


def without_patients(content: bytes, encoding: str, issuer: str, is_withdrawn: Callable[[str], bool]) -> bytes | None:
    """Return a message without the parts about withdrawn patients; None if it is about no other patient.

    `issuer`: authority of the site's identifiers, "" if only one is used. A part belongs to a withdrawn patient if any
    of the site's identifiers in PID-3 is theirs. Raises BrokenError if a PID cannot be read.
    """
    lines = content.splitlines(keepends=True)
    texts = [line.decode(encoding, "replace").strip(f"{FRAMING}\r") for line in lines]
    starts = [number for number, text in enumerate(texts) if text.startswith("PID")]

    def is_gone(pid: str) -> bool:
        ours = of_site(identifiers_of(parse([texts[0], pid])[1]), issuer)
        return any(is_withdrawn(identifier.value) for identifier in ours)

    parts = list(pairwise([*starts, len(lines)]))
    kept = [part for part in parts if not is_gone(texts[part[0]])]
    if len(kept) == len(parts):
        return content
    if not kept:
        return None
    return b"".join([*lines[: starts[0]], *(line for first, end in kept for line in lines[first:end])])
