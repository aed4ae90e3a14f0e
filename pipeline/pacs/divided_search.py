"""Search for studies in a PACS that returns at most so many results: divide the period until each part has fewer.

Begin with `studies`. DICOMweb and DIMSE share it; `queries` says how days and minutes are divided.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from models.refusal import Refusal
from pipeline.pacs import reasons
from pipeline.pacs.queries import WHOLE_DAY, Days, Minutes, halves_in_time, is_at, is_within

Found_co = TypeVar("Found_co", covariant=True)


class TimeRejected(Exception):
    """The PACS rejects a search by StudyTime."""


class Results(Protocol[Found_co]):
    """The results of one search, as they arrive. The other attributes are known after the last one.

    `is_cut`: there may be more. `is_surely_cut`: there must be more, or it is not safe to assume that there are not.
    `refusal`: raised instead of E_PACS_TRUNCATED if the period cannot be divided.
    """

    @property
    def count(self) -> int: ...

    @property
    def is_cut(self) -> bool: ...

    @property
    def is_surely_cut(self) -> bool: ...

    @property
    def refusal(self) -> Refusal | None: ...

    def __iter__(self) -> Iterator[Found_co]: ...


@dataclass(frozen=True)
class Study:
    """What the division needs of one study: UID ('' if not valid), StudyDate and StudyTime."""

    uid: str
    day: str
    time: str


@dataclass(frozen=True)
class _Part:
    """A period to search in. `of`: the results of the search that it is a part of if that was surely cut, or 0."""

    days: Days
    minutes: Minutes = WHOLE_DAY
    of: int = 0

    def divided(self, results: int) -> "list[_Part]":
        """Return the two halves; nothing if it is one minute."""
        return [
            _Part(days, minutes, max(results, self.of)) for days, minutes in halves_in_time(self.days, self.minutes)
        ]


def studies(
    period: Days, search: Callable[[Days, Minutes], Results[Found_co]], describe: Callable[[Found_co], Study]
) -> Iterator[Found_co]:
    """Yield each study with a valid UID once; search again in a shorter period if the PACS did not return all of them.

    Each study of a divided day must be found again by its time. If one is not, as without StudyTime, the PACS may
    have left out others like it. `search` raises TimeRejected if the PACS does not accept a part of a day.

    Raises Refusal E_PACS_TRUNCATED if the results of a search are surely cut and its period cannot be divided.
    """
    known, unconfirmed = {""}, set[str]()
    most = 0
    parts = [_Part(period)]
    while parts:
        part = parts.pop()
        results = search(part.days, part.minutes)
        is_followed, found = True, set[str]()
        try:
            for each in results:
                study = describe(each)
                is_followed &= is_within(study.day, *part.days) and is_at(study.time, part.minutes)
                found.add(study.uid)
                if study.uid not in known:
                    known.add(study.uid)
                    yield each
        except TimeRejected as error:
            if part.of:
                raise Refusal(reasons.PACS_TRUNCATED, private=str(error), results=part.of) from None
            continue
        unconfirmed -= found
        if not results.is_cut:
            continue
        is_sure = results.is_surely_cut or part.of > 0
        halves = part.divided(results.count if is_sure else 0) if is_followed else []
        parts += halves
        if is_sure and not halves:
            raise results.refusal or Refusal(reasons.PACS_TRUNCATED, results=results.count)
        if is_sure and halves[0].minutes != WHOLE_DAY:
            most = max(most, results.count)
            unconfirmed |= found
    if unconfirmed:
        raise Refusal(reasons.PACS_TRUNCATED, results=most)
