"""The roster: the hospitals of a study with the keys of their gateways, as each hospital approves it.

The study's authority does not sign it: that authority's key is at the server, which could invent hospitals. People
compare the roster's words by telephone instead.
"""

import hashlib
from typing import Annotated, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator

from federation.secure_aggregation import reasons
from federation.secure_aggregation.canonical import Key, canonical
from models.refusal import Refusal

MIN_PEERS = 3  # a sum of two tells each of them the other's update
MAX_PEERS = 100
_CODE_DIGITS = 40  # 132 bits: two rosters with the same code would take a server 2^66 attempts


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]  # of a hospital in the study


class Member(BaseModel, extra="forbid", frozen=True, strict=True):
    """A hospital: its name in the study, and the Ed25519 key of its gateway."""

    name: Name
    key: Key

    @property
    def fingerprint(self) -> str:
        """The first 16 bytes of the key's SHA-256, in groups of four hex digits."""
        digits = hashlib.sha256(self.key).hexdigest()[:32]
        return " ".join(digits[start : start + 4] for start in range(0, 32, 4))


def threshold_of(members: int) -> int:
    """Return how many hospitals each step needs on a roster with so many members; see `Roster.threshold`."""
    return 2 * members // 3 + 1


class PeerKey(BaseModel, extra="forbid", frozen=True, strict=True):
    """The key that a gateway presents to the server."""

    key: Key


class Roster(BaseModel, extra="forbid", frozen=True, strict=True):
    """The hospitals of a study, sorted by name."""

    members: Annotated[tuple[Member, ...], Field(strict=False, max_length=MAX_PEERS)]

    @model_validator(mode="after")
    def members_are_distinct(self) -> Self:
        names = [member.name for member in self.members]
        if names != sorted(set(names)) or len({member.key for member in self.members}) != len(names):
            raise ValueError("hospitals must be sorted by name, and have distinct names and keys")
        return self

    @property
    def content(self) -> bytes:
        """The bytes that are approved."""
        return canonical(self)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def code(self) -> str:
        """The short authentication string: 40 decimal digits that two people compare by telephone."""
        number = int.from_bytes(hashlib.sha256(b"fedthorax secagg roster code" + self.content).digest(), "big")
        digits = f"{number % 10**_CODE_DIGITS:0{_CODE_DIGITS}}"
        return " ".join(digits[start : start + 5] for start in range(0, _CODE_DIGITS, 5))

    @property
    def by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}

    @property
    def threshold(self) -> int:
        """How many hospitals each step needs: floor(2n/3) + 1 of all n on the roster (Bonawitz et al. 2017).

        Two lists of replies would need this many signatures each, and an honest hospital signs once. With c colluding
        hospitals, both lists are signed only if 2 (t - c) <= n - c, so fewer than 2t - n colluding ones are harmless.
        It counts the roster, not those present: otherwise a server could split the hospitals into two sums.
        """
        return threshold_of(len(self.members))

    def point(self, name: str) -> int:
        """Return the point of a hospital's shares."""
        return list(self.by_name).index(name) + 1

    @classmethod
    def parse(cls, content: bytes) -> "Roster":
        """Raises Refusal E_SECAGG_MESSAGE."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise Refusal(reasons.SECAGG_MESSAGE, private=str(error)) from error
