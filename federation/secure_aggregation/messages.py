"""The messages of a masked round, and what each signature and digest covers. Input is untrusted."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from federation.secure_aggregation import reasons
from federation.secure_aggregation.canonical import Digest, Key, SealedShares, Share, Signature, canonical, digest
from federation.secure_aggregation.keys import Identity, check_signature
from federation.secure_aggregation.roster import MAX_PEERS, Member, Name
from models.refusal import Refusal

MAX_BYTES = 128 * 1024  # of one message; a hundred hospitals need about half of it
MAX_NUMBER = 1_000_000
NOTHING = "0" * 64
TRAIN = "train"  # the kind of a round of training
_TOLD = ("kind", "model", "asked", "settings")  # what a server may tell hospitals differently in one attempt

Kind = Annotated[str, StringConstraints(pattern=r"^[a-z.]{1,40}$")]
Parts = Annotated[str, StringConstraints(pattern=r"^(0|[1-9a-f][0-9a-f]{0,63})$")]
Names = Annotated[tuple[Name, ...], Field(strict=False, max_length=MAX_PEERS)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Raises Refusal E_SECAGG_MESSAGE."""
        if len(content) > MAX_BYTES:
            raise Refusal(reasons.SECAGG_MESSAGE, private="too long")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise Refusal(reasons.SECAGG_MESSAGE, private=f"{error.error_count()} errors") from error

    @property
    def content(self) -> bytes:
        return canonical(self)


class Header(_Message):
    """What identifies an attempt at a round, and all that determines a hospital's reply in it.

    `study`: digest of its settings. `run`: its name. `round` and `attempt`: numbers from 1. `roster`: digest of the
    approved hospitals. `kind`: TRAIN, or the kind of question. `model`: digest of the model. `asked`: digest of what
    accompanies the model in a question; NOTHING in training. `settings`: digest of how replies are summed (`Settings`
    of `reply_vector`, `AnswerSettings` of `answer_vector`). `app`: SHA-256 of the code.
    """

    study: Digest
    run: str = Field(pattern=r"^[a-z0-9-]{1,80}$")
    round: int = Field(ge=1, le=MAX_NUMBER)
    attempt: int = Field(ge=1, le=MAX_NUMBER)
    roster: Digest
    kind: Kind
    model: Digest
    asked: Digest
    settings: Digest
    app: Digest

    @model_validator(mode="after")
    def only_a_question_asks_more(self) -> Self:
        if (self.kind == TRAIN) != (self.asked == NOTHING):
            raise ValueError("a round of training asks nothing besides, a question does")
        return self

    @property
    def digest(self) -> str:
        return digest("header", self)

    @property
    def told(self) -> str:
        """The digest of what is trained or asked, and how it is summed."""
        return digest("told", [getattr(self, what) for what in _TOLD])


class Advertisement(_Message):
    """A hospital's public keys of one attempt, signed with the header.

    `sealing` and `masking`: X25519 keys, with which shares are sealed and pairs of masks made. `seed`: SHA-256 of the
    seed of its own mask, by which the server detects wrong shares. `told`: of the hospital's header, so that the others
    can tell who was told something else. `brings`: which of the optional parts of a reply this hospital has, as bits in
    hexadecimal digits; see `SiteRound.kept`. `summed`: the `hospitals_digest` of those over which figures or answers of
    this kind were summed before; NOTHING if they never were here.
    """

    name: Name
    sealing: Key
    masking: Key
    seed: Digest
    told: Digest
    brings: Parts
    summed: Digest = NOTHING
    signature: Signature

    @classmethod
    def signed(
        cls,
        header: Header,
        name: str,
        identity: Identity,
        *,
        sealing: bytes,
        masking: bytes,
        seed: str,
        brings: int = 0,
        summed: str = NOTHING,
    ) -> Self:
        unsigned = cls(
            name=name,
            sealing=sealing,
            masking=masking,
            seed=seed,
            told=header.told,
            brings=f"{brings:x}",
            summed=summed,
            signature=bytes(64),
        )
        return unsigned.model_copy(update={"signature": identity.sign("advertise", unsigned.covered(header))})

    def covered(self, header: Header) -> bytes:
        """Return what the signature covers: the attempt, what this hospital was told in it, and the keys."""
        attempt = header.model_dump(mode="json", exclude=set(_TOLD))
        return canonical([attempt, self.model_copy(update={"signature": bytes(64)}).model_dump(mode="json")])

    def check(self, header: Header, member: Member) -> None:
        """Raises Refusal: E_SECAGG_SIGNATURE, E_SECAGG_UNLIKE."""
        check_signature(member.key, self.signature, "advertise", self.covered(header))
        if self.told != header.told:
            raise Refusal(reasons.SECAGG_UNLIKE, private=self.name)


def hospitals_digest(names: Iterable[str] | None) -> str:
    """Return the digest of a set of hospitals; NOTHING for None."""
    return NOTHING if names is None else digest("hospitals", sorted(names))


class Advertised(_Message):
    """The hospitals of an attempt, as the server froze them (Bonawitz's U1)."""

    hospitals: Annotated[tuple[Advertisement, ...], Field(strict=False, max_length=MAX_PEERS)]

    @model_validator(mode="after")
    def distinct(self) -> Self:
        _check_names([each.name for each in self.hospitals])
        return self

    @property
    def digest(self) -> str:
        return digest("advertised", self)

    @property
    def by_name(self) -> dict[str, Advertisement]:
        return {each.name: each for each in self.hospitals}


class Sealed(_Message):
    """The shares that one hospital sends to the others, or the others to one: sealed, by the other's name."""

    shares: dict[Name, SealedShares] = Field(max_length=MAX_PEERS)


class Uploaded(_Message):
    """The hospitals whose masked replies the server has (Bonawitz's U3)."""

    hospitals: Names

    @model_validator(mode="after")
    def distinct(self) -> Self:
        _check_names(self.hospitals)
        return self


class Confirmations(_Message):
    """The hospitals' signatures under one list of replies, by name."""

    signatures: dict[Name, Signature] = Field(max_length=MAX_PEERS)


class Confirmation(_Message):
    """One hospital's signature under the list of replies."""

    signature: Signature


class Revealed(_Message):
    """A hospital's answer to unmasking, by name: shares of seeds of own masks, or of masking keys; never both."""

    seeds: dict[Name, Share] = Field(max_length=MAX_PEERS)
    keys: dict[Name, Share] = Field(max_length=MAX_PEERS)


def _check_names(names: Sequence[str]) -> None:
    if list(names) != sorted(set(names)):
        raise ValueError("names must be distinct and sorted")


def lists_digest(advertised: str, sharing: Sequence[str]) -> str:
    """Return the digest of the hospitals that pairs of masks are made with: U1 with its keys, and U2 of it."""
    return digest("lists", [advertised, sorted(sharing)])


def context(header: Header, lists: str = NOTHING, *names: str) -> bytes:
    """Return what a derived key depends on: the header, the digest of lists, and the hospitals concerned."""
    return canonical([header.digest, lists, *names])


def confirmed(header: Header, lists: str, uploaded: Uploaded) -> bytes:
    """Return what a signature under the list of replies covers."""
    return canonical([header.digest, lists, list(uploaded.hospitals)])


def seed_digest(seed: bytes) -> str:
    """Return the SHA-256 by which a reconstructed seed is compared."""
    return hashlib.sha256(b"fedthorax secagg 1 seed\0" + seed).hexdigest()


def pair(one: str, other: str) -> tuple[str, str]:
    """Return two names in the order in which a key between them names them."""
    return (one, other) if one < other else (other, one)


def sign_of(name: str, other: str) -> int:
    """Return whether `name` adds (1) or subtracts (-1) the mask that it shares with `other`."""
    return 1 if name < other else -1


def members_of(names: Sequence[str], known: Mapping[str, object]) -> None:
    """Raises Refusal E_SECAGG_MEMBER unless all names are known."""
    if not set(names) <= set(known):
        raise Refusal(reasons.SECAGG_MEMBER)
