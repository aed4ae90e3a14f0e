"""A hospital's gateway in a masked round: five steps, each done once, each stored before its message is sent.

    advertise → share → mask → confirm → reveal

What holds, also over crashes, restarts and a server that cheats:

- A reply is masked once in an attempt, and an attempt that was left is never answered again.
- Of another hospital, only one share is revealed in an attempt: of its own mask's seed if its reply is in the sum, of
  its masking key if not. This depends on the one list of replies that the hospital signs.
- One sum of each kind is revealed for a model, for ever: of its updates, and of the answers to each kind of question.
- No step is done with fewer hospitals than the roster's threshold, or for hospitals that are not on the roster.

A step that is asked again with the same content gets the same answer, so that a lost answer can be repeated.
"""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from federation.secure_aggregation import reasons
from federation.secure_aggregation.keys import (
    KEY_BYTES,
    Identity,
    agreed_key,
    check_signature,
    derived_key,
    public_key,
    seal,
    unseal,
)
from federation.secure_aggregation.masking import Masks
from federation.secure_aggregation.messages import (
    NOTHING,
    TRAIN,
    Advertised,
    Advertisement,
    Confirmation,
    Confirmations,
    Header,
    Revealed,
    Sealed,
    Uploaded,
    confirmed,
    context,
    hospitals_digest,
    lists_digest,
    members_of,
    pair,
    seed_digest,
    sign_of,
)
from federation.secure_aggregation.notes import CHANGED, MAY_REVEAL, summed_over
from federation.secure_aggregation.roster import MIN_PEERS, Roster
from federation.secure_aggregation.shamir import SHARE_BYTES, split
from federation.secure_aggregation.store import UNKNOWN, Attempt, Store
from models.refusal import Refusal

ADVERTISED, SHARED, MASKED, CONFIRMED, REVEALED = 1, 2, 3, 4, 5
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """The site's own limits. `max_changes`: how often the hospitals in the sum may change in all runs of a study."""

    min_peers: int = MIN_PEERS
    max_changes: int = 6


def _whole(step: Callable[Concatenate["SiteRound", P], T]) -> Callable[Concatenate["SiteRound", P], T]:
    """Do a step while no other one is done with the same store.

    Otherwise a step of an attempt that was left, which a thread still does, would replace the next attempt. And what
    two runs sign at the same moment would be in the ledger in another order than in the store.
    """

    @wraps(step)
    def alone(round_: "SiteRound", *arguments: P.args, **options: P.kwargs) -> T:
        with round_.store.lock:
            return step(round_, *arguments, **options)

    return alone


class SiteRound:
    """The site's part in an attempt at a round. `roster`: the one that this hospital approved.

    `note` is called with a line for the ledger (`notes`) and what it is about, a digest: before a list of replies is
    signed, and before a sum may be revealed.
    """

    def __init__(
        self,
        store: Store,
        identity: Identity,
        roster: Roster,
        header: Header,
        limits: Limits | None = None,
        note: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        """Raises Refusal: E_SECAGG_ROSTER, E_SECAGG_ROSTER_SMALL, E_SECAGG_MEMBER."""
        limits = limits or Limits()
        needed = max(MIN_PEERS, limits.min_peers)
        if header.roster != roster.digest:
            raise Refusal(reasons.SECAGG_ROSTER)
        if len(roster.members) < needed:
            raise Refusal(reasons.SECAGG_ROSTER_SMALL, needed=needed, present=len(roster.members))
        own = [member.name for member in roster.members if member.key == identity.public]
        if not own:
            raise Refusal(reasons.SECAGG_MEMBER)
        self.name = own[0]
        self.store, self._identity, self._roster, self._header = store, identity, roster, header
        self._limits, self._note = limits, note
        self._least = max(needed, roster.threshold)

    # --- step 1: keys -------------------------------------------------------------------------------------

    @_whole
    def advertise(self, brings: int = 0) -> Advertisement:
        """Begin the attempt with fresh keys. From now on, no earlier attempt of the run is answered.

        `brings`: a bit for each optional part of the reply that this hospital has; see `kept`. Raises Refusal:
        E_SECAGG_MODEL_USED, E_SECAGG_FORGOTTEN, E_SECAGG_ROUND_OLD, E_SECAGG_STEP, E_SECAGG_LOST.
        """
        header = self._header
        last = self.store.last(header.run)
        place = (header.round, header.attempt)
        if last is not None and place <= (last.round, last.attempt):
            if place < (last.round, last.attempt):
                raise Refusal(reasons.SECAGG_ROUND_OLD)
            return Advertisement.parse(self._current(ADVERTISED).secrets["advertisement"].encode())
        if self.store.was_revealed(header.model, header.kind):
            raise Refusal(reasons.SECAGG_MODEL_USED)
        summed = self.store.summed_over(header.roster, header.kind)
        if summed == UNKNOWN and header.kind != TRAIN:  # an update is summed without its figures (see `kept`)
            raise Refusal(reasons.SECAGG_FORGOTTEN)
        keys = {what: secrets.token_bytes(KEY_BYTES) for what in ("sealing", "masking", "seed")}
        own = Advertisement.signed(
            header,
            self.name,
            self._identity,
            sealing=public_key(keys["sealing"]),
            masking=public_key(keys["masking"]),
            seed=seed_digest(keys["seed"]),
            brings=brings,
            summed=summed,
        )
        content: dict[str, Any] = {what: key.hex() for what, key in keys.items()}
        content |= {"header": header.digest, "advertisement": own.content.decode()}
        before = last or Attempt(header.run, *place)
        before = replace(before, round=header.round, attempt=header.attempt, study=header.study)
        self.store.begin(replace(before, step=ADVERTISED, secrets=content))
        return own

    # --- step 2: shares -----------------------------------------------------------------------------------

    @_whole
    def share(self, advertised: Advertised) -> Sealed:
        """Split the own keys among the hospitals of the attempt (U1), sealed for each.

        Raises Refusal: E_SECAGG_MEMBER, E_SECAGG_TOO_FEW, E_SECAGG_SIGNATURE, E_SECAGG_UNLIKE, E_SECAGG_STEP,
        E_SECAGG_LOST, E_SECAGG_ROUND_OLD.
        """
        current = self._current(ADVERTISED)
        if current.step > ADVERTISED:
            if Advertised.parse(current.secrets["advertised"].encode()) != advertised:
                raise Refusal(reasons.SECAGG_STEP)
            return Sealed.parse(current.secrets["sealed"].encode())
        others = advertised.by_name
        members = self._roster.by_name
        members_of(list(others), members)
        self._check_number(len(others))
        for name, each in others.items():
            each.check(self._header, members[name])
        own = Advertisement.parse(current.secrets["advertisement"].encode())
        if others.get(self.name) != own:
            raise Refusal(reasons.SECAGG_MEMBER)
        points = {name: self._roster.point(name) for name in others}
        halves = [
            split(bytes.fromhex(current.secrets[what]), list(points.values()), self._roster.threshold)
            for what in ("seed", "masking")
        ]
        shares = {name: halves[0][point] + halves[1][point] for name, point in points.items()}
        lists, own_key = advertised.digest, bytes.fromhex(current.secrets["sealing"])
        sealed = Sealed(
            shares={
                name: seal(
                    self._sealing_key(own_key, each.sealing, lists, self.name, name),
                    shares[name],
                    context(self._header, lists),
                )
                for name, each in others.items()
                if name != self.name
            }
        )
        content = {
            "advertised": advertised.content.decode(),
            "sealed": sealed.content.decode(),
            "shares": {self.name: shares[self.name].hex()},
        }
        self._advance(current, SHARED, content)
        return sealed

    def _sealing_key(self, own: bytes, other: bytes, lists: str, sender: str, recipient: str) -> bytes:
        """Return the key for the shares that one hospital sends to another; each direction has its own."""
        return agreed_key(own, other, "shares", context(self._header, lists, sender, recipient))

    # --- step 3: the masked reply -------------------------------------------------------------------------

    @_whole
    def mask(self, received: Sealed) -> Masks:
        """Return the masks of the reply, given the other hospitals' shares. Can be called once in an attempt.

        The hospitals that sent shares, and this one, are U2: pairs of masks are made with them. Raises Refusal:
        E_SECAGG_MASKED, E_SECAGG_TOO_FEW, E_SECAGG_NOT_SAME, E_SECAGG_MEMBER, E_SECAGG_SHARE, E_SECAGG_STEP,
        E_SECAGG_LOST.
        """
        current = self._current(SHARED)
        if current.step > SHARED:
            raise Refusal(reasons.SECAGG_MASKED)
        advertised = Advertised.parse(current.secrets["advertised"].encode())
        others, lists = advertised.by_name, advertised.digest
        members_of(list(received.shares), others)
        if self.name in received.shares:
            raise Refusal(reasons.SECAGG_MEMBER)
        self._check_number(len(received.shares) + 1)
        self._check_same(others, {*received.shares, self.name})
        shares: dict[str, str] = dict(current.secrets["shares"])
        for name, sealed in received.shares.items():
            own_key = bytes.fromhex(current.secrets["sealing"])
            key = self._sealing_key(own_key, others[name].sealing, lists, name, self.name)
            shares[name] = unseal(key, sealed, context(self._header, lists)).hex()
        lists = lists_digest(lists, list(shares))
        masking, seed = bytes.fromhex(current.secrets["masking"]), bytes.fromhex(current.secrets["seed"])
        keys = [(own_mask_key(seed, self._header, lists, self.name), 1)]
        for name in sorted(received.shares):
            other = others[name].masking
            keys.append((pair_mask_key(masking, other, self._header, lists, self.name, name), sign_of(self.name, name)))
        own = {"shares": shares, "lists": lists, "kept": self._brought(others, shares)}
        self._advance(current, MASKED, own)  # before the first masked byte
        return Masks(keys)

    @property
    def kept(self) -> int:
        """The parts of the reply that may be in the sum: those that MIN_PEERS hospitals or more bring.

        A sum of one or two hospitals' figures would nearly be theirs. None if figures of this kind were summed over
        other hospitals of the roster before: they follow from the model and the patients alone, so the difference of
        two sums about nearly the same model would be the figures of the hospital that is missing in one. All hospitals
        leave out the same parts, because their masks cancel only if all were told the same. Known from the masked reply
        on.
        """
        return int(self._current(MASKED).secrets["kept"])

    def _are_the_same(self, advertised: Mapping[str, Advertisement], present: Collection[str]) -> bool:
        """Whether this kind of figures or answers was summed before over these hospitals, or never.

        All of them say it: one that was missing then does not know it.
        """
        before = {advertised[name].summed for name in present}
        return before <= {NOTHING, hospitals_digest(present)}

    def _check_same(self, advertised: Mapping[str, Advertisement], present: Collection[str]) -> None:
        if self._header.kind != TRAIN and not self._are_the_same(advertised, present):
            raise Refusal(reasons.SECAGG_NOT_SAME)

    def _brought(self, advertised: Mapping[str, Advertisement], present: Collection[str]) -> int:
        """Return the parts that enough of the hospitals that are present bring."""
        if not self._are_the_same(advertised, present):
            return 0
        brings = [int(advertised[name].brings, 16) for name in present]
        bits = max(each.bit_length() for each in brings)
        enough = (bit for bit in range(bits) if sum(each >> bit & 1 for each in brings) >= MIN_PEERS)
        return sum(1 << bit for bit in enough)

    # --- step 4: who is in the sum ------------------------------------------------------------------------

    @_whole
    def confirm(self, uploaded: Uploaded) -> Confirmation:
        """Sign the list of hospitals whose replies the server has (U3), one list in an attempt.

        Raises Refusal: E_SECAGG_UPLOADED_TWICE, E_SECAGG_LEFT_OUT, E_SECAGG_MEMBER, E_SECAGG_TOO_FEW,
        E_SECAGG_FEW_BRING, E_SECAGG_NOT_SAME, E_SECAGG_CHANGES, E_SECAGG_STEP, E_SECAGG_LOST.
        """
        current = self._current(MASKED)
        if current.step == MASKED:
            members_of(uploaded.hospitals, current.secrets["shares"])
            if self.name not in uploaded.hospitals:
                raise Refusal(reasons.SECAGG_LEFT_OUT)
            self._check_number(len(uploaded.hospitals))
            advertised = Advertised.parse(current.secrets["advertised"].encode()).by_name
            self._check_same(advertised, uploaded.hospitals)
            if current.secrets["kept"] & ~self._brought(advertised, uploaded.hospitals):
                raise Refusal(reasons.SECAGG_FEW_BRING)
            self._sign(current, uploaded)
        elif current.secrets["uploaded"] != list(uploaded.hospitals):
            raise Refusal(reasons.SECAGG_UPLOADED_TWICE)
        content = confirmed(self._header, current.secrets["lists"], uploaded)
        return Confirmation(signature=self._identity.sign("confirm", content))

    def _sign(self, current: Attempt, uploaded: Uploaded) -> None:
        """Store, after the ledger, over which hospitals this sum is signed."""
        header, hospitals = self._header, hospitals_digest(uploaded.hospitals)
        has_figures = header.kind != TRAIN or bool(current.secrets["kept"])
        summed = (header.roster, header.kind) if has_figures else None
        if summed and self.store.summed_over(*summed) not in (NOTHING, hospitals):  # of another run, since step 1
            raise Refusal(reasons.SECAGG_NOT_SAME)
        current = self._counted(current, hospitals)
        note = summed_over(header.kind, hospitals, study=header.study, figures=has_figures)
        self._note(note, header.roster)
        self._advance(current, CONFIRMED, {"uploaded": list(uploaded.hospitals)}, summed=summed)

    def _counted(self, current: Attempt, hospitals: str) -> Attempt:
        """Count the change if the sum's hospitals are not those of the run's last sum, or at first the whole roster."""
        before = current.uploaded or hospitals_digest(self._roster.by_name)
        if before == hospitals:
            return replace(current, uploaded=hospitals)
        # Not of this run alone: a server can begin new runs of an approved study, each near the first model.
        if self.store.changes(self._header.study, self._header.run) >= self._limits.max_changes:
            raise Refusal(reasons.SECAGG_CHANGES, allowed=self._limits.max_changes)
        self._note(CHANGED, self._header.digest)
        return replace(current, uploaded=hospitals, changes=current.changes + 1)

    # --- step 5: unmasking --------------------------------------------------------------------------------

    @_whole
    def reveal(self, confirmations: Confirmations) -> Revealed:
        """Return the shares that unmask the sum of the list that this hospital and enough others signed.

        Raises Refusal: E_SECAGG_MEMBER, E_SECAGG_TOO_FEW, E_SECAGG_SIGNATURE, E_SECAGG_MODEL_USED, E_SECAGG_STEP,
        E_SECAGG_LOST.
        """
        current = self._current(CONFIRMED)
        uploaded = Uploaded(hospitals=tuple(current.secrets["uploaded"]))
        members_of(list(confirmations.signatures), dict.fromkeys(uploaded.hospitals))
        self._check_number(len(confirmations.signatures))
        content = confirmed(self._header, current.secrets["lists"], uploaded)
        for name, signature in confirmations.signatures.items():
            check_signature(self._roster.by_name[name].key, signature, "confirm", content)
        if current.step == CONFIRMED:
            if self.store.was_revealed(self._header.model, self._header.kind):
                raise Refusal(reasons.SECAGG_MODEL_USED)
            self._note(MAY_REVEAL, self._header.digest)
            self._advance(current, REVEALED, {}, revealed=(self._header.model, self._header.kind))
        shares = {name: bytes.fromhex(both) for name, both in current.secrets["shares"].items()}
        return Revealed(
            seeds={name: both[:SHARE_BYTES] for name, both in shares.items() if name in uploaded.hospitals},
            keys={name: both[SHARE_BYTES:] for name, both in shares.items() if name not in uploaded.hospitals},
        )

    # --- the stored state ---------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The last step that was done in this attempt; 0 if another attempt is the run's last, or it is lost."""
        last = self.store.last(self._header.run)
        is_this = last is not None and last.secrets.get("header") == self._header.digest
        return last.step if last and is_this else 0

    @_whole
    def check_open(self) -> None:
        """Raises Refusal if the masked reply of this attempt can be in no sum any more.

        E_SECAGG_MODEL_USED, E_SECAGG_ROUND_OLD, E_SECAGG_STEP, E_SECAGG_LOST.
        """
        header = self._header
        if self._current(MASKED).step < REVEALED and self.store.was_revealed(header.model, header.kind):
            raise Refusal(reasons.SECAGG_MODEL_USED)

    def _current(self, least: int) -> Attempt:
        """Return the stored attempt, in which at least this step was done."""
        last = self.store.last(self._header.run)
        if last is None or (last.round, last.attempt) < (self._header.round, self._header.attempt):
            raise Refusal(reasons.SECAGG_STEP)
        if (last.round, last.attempt) > (self._header.round, self._header.attempt):
            raise Refusal(reasons.SECAGG_ROUND_OLD)
        if not last.secrets:
            raise Refusal(reasons.SECAGG_LOST)
        if last.secrets["header"] != self._header.digest or last.step < least:
            raise Refusal(reasons.SECAGG_STEP)
        return last

    def _advance(
        self,
        current: Attempt,
        step: int,
        content: Mapping[str, Any],
        *,
        revealed: tuple[str, str] | None = None,
        summed: tuple[str, str] | None = None,
    ) -> None:
        secrets_now = {**current.secrets, **content}
        if step == MASKED:  # no longer needed: whoever finds them later could rebuild the masks
            for what in ("sealing", "masking", "seed"):
                secrets_now.pop(what)
        self.store.advance(replace(current, step=step, secrets=secrets_now), revealed=revealed, summed=summed)

    def _check_number(self, present: int) -> None:
        if present < self._least:
            raise Refusal(reasons.SECAGG_TOO_FEW, present=present, needed=self._least)


def pair_mask_key(private: bytes, other: bytes, header: Header, lists: str, name: str, other_name: str) -> bytes:
    """Return the key of the mask that two hospitals share."""
    return agreed_key(private, other, "pair", context(header, lists, *pair(name, other_name)))


def own_mask_key(seed: bytes, header: Header, lists: str, name: str) -> bytes:
    """Return the key of a hospital's own mask."""
    return derived_key(seed, "own", context(header, lists, name))
