"""The server's side of an attempt at a round: it collects messages, freezes three lists, and unmasks the sum.

    advertised (U1) → sharing (U2) → uploaded (U3) → confirmed → revealed

It is trusted with nothing: a server that deviates gets no sum (`site_round`). What it checks here protects the round
from a broken hospital. From the moment when the list of replies is frozen, everything is kept in a folder: if the
server is killed, the hospitals answer the last steps again, because the sum of a model's updates is revealed only once.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from federation.secure_aggregation import reasons
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.keys import check_signature, public_key
from federation.secure_aggregation.masking import Masks, Words
from federation.secure_aggregation.messages import (
    Advertised,
    Advertisement,
    Confirmation,
    Confirmations,
    Header,
    Revealed,
    Sealed,
    Uploaded,
    confirmed,
    lists_digest,
    members_of,
    seed_digest,
    sign_of,
)
from federation.secure_aggregation.roster import Roster
from federation.secure_aggregation.shamir import combine
from federation.secure_aggregation.site_round import own_mask_key, pair_mask_key
from models.refusal import Refusal
from pipeline.system.atomic_files import replacing, sync_folder, write_durably

_STATE, _TOTAL = "round.json", "total.npy"
_MAX_TRIES = 200  # subsets of shares, if some hospitals return wrong ones


class ServerRound:
    """One attempt. `folder`: what survives a killed server. `words`: the length of a masked reply.

    Messages may come in any order and repeatedly; one that comes after its list is frozen is refused (E_SECAGG_STEP).
    """

    def __init__(self, roster: Roster, header: Header, folder: Path, *, words: int) -> None:
        self.roster, self.header, self.words = roster, header, words
        self._folder = folder
        self._advertised: dict[str, Advertisement] = {}
        self._sealed: dict[str, Sealed] = {}
        self._signatures: dict[str, bytes] = {}
        self._revealed: dict[str, Revealed] = {}
        self._uploads: set[str] = set()
        self._total: Words = np.zeros(words, np.uint32)
        self.advertised: Advertised | None = None
        self.sharing: tuple[str, ...] | None = None
        self.uploaded: Uploaded | None = None

    # --- the three lists ----------------------------------------------------------------------------------

    def advertise(self, name: str, message: Advertisement) -> None:
        """Raises Refusal: E_SECAGG_STEP, E_SECAGG_MEMBER, E_SECAGG_SIGNATURE, E_SECAGG_UNLIKE."""
        _require(self.advertised is None or self._advertised.get(name) == message)
        if message.name != name:
            raise Refusal(reasons.SECAGG_MEMBER)
        members_of([name], self.roster.by_name)
        message.check(self.header, self.roster.by_name[name])
        self._advertised[name] = message

    def waiting_for(self, names: Set[str]) -> bool:
        """Whether some of these hospitals have not advertised yet."""
        return not names <= set(self._advertised)

    @property
    def can_freeze_advertised(self) -> bool:
        return len(self._advertised) >= self.roster.threshold

    def freeze_advertised(self) -> Advertised:
        """Fix who takes part (U1). Raises Refusal E_SECAGG_TOO_FEW: the round is lost, and the model stays."""
        if self.advertised is None:
            self._check_number(len(self._advertised))
            self.advertised = Advertised(hospitals=tuple(self._advertised[name] for name in sorted(self._advertised)))
        return self.advertised

    def share(self, name: str, message: Sealed) -> None:
        """Raises Refusal: E_SECAGG_STEP, E_SECAGG_MEMBER."""
        _require(self.advertised is not None)
        _require(self.sharing is None or self._sealed.get(name) == message)
        assert self.advertised is not None
        if set(message.shares) | {name} != set(self.advertised.by_name) or name in message.shares:
            raise Refusal(reasons.SECAGG_MEMBER)
        self._sealed[name] = message

    def waiting_for_shares(self, names: Set[str]) -> bool:
        """Whether some of these hospitals have not sent their shares yet."""
        return not names <= set(self._sealed)

    @property
    def can_freeze_sharing(self) -> bool:
        return len(self._sealed) >= self.roster.threshold

    def freeze_sharing(self) -> tuple[str, ...]:
        """Fix who masks with whom (U2). Raises Refusal E_SECAGG_TOO_FEW."""
        _require(self.advertised is not None)
        if self.sharing is None:
            self._check_number(len(self._sealed))
            self.sharing = tuple(sorted(self._sealed))
        return self.sharing

    def shares_for(self, name: str) -> Sealed:
        """Return the shares that the other hospitals sealed for this one.

        Raises Refusal: E_SECAGG_STEP, E_SECAGG_MEMBER.
        """
        _require(self.sharing is not None)
        assert self.sharing is not None
        members_of([name], dict.fromkeys(self.sharing))
        return Sealed(shares={other: self._sealed[other].shares[name] for other in self.sharing if other != name})

    def upload(self, name: str, reply: Words) -> None:
        """Add a masked reply to the sum. Raises Refusal: E_SECAGG_STEP, E_SECAGG_MEMBER, E_SECAGG_MESSAGE."""
        _require(self.sharing is not None and self.uploaded is None)
        assert self.sharing is not None
        if name not in self.sharing or name in self._uploads:
            raise Refusal(reasons.SECAGG_MEMBER)
        if reply.shape != (self.words,) or reply.dtype != np.uint32:
            raise Refusal(reasons.SECAGG_MESSAGE, private="a masked reply of another length")
        self._uploads.add(name)
        self._total += reply

    @property
    def replies(self) -> int:
        """How many masked replies have arrived."""
        return len(self._uploads)

    def freeze_uploaded(self) -> Uploaded:
        """Fix whose replies are in the sum (U3), and store it. Raises Refusal E_SECAGG_TOO_FEW, OSError."""
        _require(self.sharing is not None)
        if self.uploaded is None:
            self._check_number(len(self._uploads))
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(self._folder / _TOTAL, mode=0o600, flush=True) as file:
                np.save(file, self._total, allow_pickle=False)
            sync_folder(self._folder)
            self.uploaded = Uploaded(hospitals=tuple(sorted(self._uploads)))
            self._write()
        return self.uploaded

    # --- the sum ------------------------------------------------------------------------------------------

    def confirm(self, name: str, message: Confirmation) -> None:
        """Take a hospital's signature under the list of replies. Raises Refusal: E_SECAGG_STEP, E_SECAGG_MEMBER,
        E_SECAGG_SIGNATURE.
        """
        _require(self.uploaded is not None)
        assert self.uploaded is not None
        members_of([name], dict.fromkeys(self.uploaded.hospitals))
        content = confirmed(self.header, self._lists, self.uploaded)
        check_signature(self.roster.by_name[name].key, message.signature, "confirm", content)
        self._signatures[name] = message.signature
        self._write()

    @property
    def confirmations(self) -> Confirmations | None:
        """The signatures, once there are enough."""
        if len(self._signatures) < self.roster.threshold:
            return None
        return Confirmations(signatures=dict(self._signatures))

    def reveal(self, name: str, message: Revealed) -> None:
        """Take a hospital's shares. Raises Refusal: E_SECAGG_STEP, E_SECAGG_MEMBER."""
        _require(self.confirmations is not None)
        assert self.uploaded is not None and self.sharing is not None
        present = set(self.uploaded.hospitals)
        members_of([name], dict.fromkeys(present))
        if set(message.seeds) != present or set(message.keys) != set(self.sharing) - present:
            raise Refusal(reasons.SECAGG_MEMBER)
        self._revealed[name] = message
        self._write()

    @property
    def revealed(self) -> Set[str]:
        """The hospitals that have revealed their shares."""
        return self._revealed.keys()

    @property
    def can_unmask(self) -> bool:
        """Whether enough hospitals have revealed their shares."""
        return len(self._revealed) >= self.roster.threshold

    def unmask(self) -> Words:
        """Return the sum of the replies in the list, modulo 2^32. Raises Refusal: E_SECAGG_TOO_FEW, E_SECAGG_SHARES."""
        self._check_number(len(self._revealed))
        assert self.advertised is not None and self.sharing is not None and self.uploaded is not None
        present, by_name = self.uploaded.hospitals, self.advertised.by_name
        keys = []
        for name in present:
            shares = {self.roster.point(of): each.seeds[name] for of, each in self._revealed.items()}
            seed = self._rebuilt(shares, seed_digest, by_name[name].seed)
            keys.append((own_mask_key(seed, self.header, self._lists, name), -1))
        for name in set(self.sharing) - set(present):
            shares = {self.roster.point(of): each.keys[name] for of, each in self._revealed.items()}
            private = self._rebuilt(shares, public_key, by_name[name].masking)
            for other in present:
                key = pair_mask_key(private, by_name[other].masking, self.header, self._lists, name, other)
                keys.append((key, -sign_of(other, name)))
        total = self._total.copy()
        Masks(keys).apply(total)
        return total

    def _rebuilt(self, shares: Mapping[int, bytes], public: Callable[[bytes], Any], expected: Any) -> bytes:
        """Return the secret whose `public` form is as expected; with spare shares, a few wrong ones do no harm."""
        for points in itertools.islice(itertools.combinations(sorted(shares), self.roster.threshold), _MAX_TRIES):
            try:
                secret = combine({point: shares[point] for point in points})
            except ValueError:
                continue
            if public(secret) == expected:
                return secret
        raise Refusal(reasons.SECAGG_SHARES)

    # --- what survives ------------------------------------------------------------------------------------

    @property
    def _lists(self) -> str:
        assert self.advertised is not None and self.sharing is not None
        return lists_digest(self.advertised.digest, self.sharing)

    def _write(self) -> None:
        assert self.advertised is not None and self.sharing is not None and self.uploaded is not None
        content = {
            "roster": json.loads(self.roster.content),
            "header": json.loads(self.header.content),
            "words": self.words,
            "advertised": json.loads(self.advertised.content),
            "sharing": list(self.sharing),
            "uploaded": list(self.uploaded.hospitals),
            "signatures": json.loads(Confirmations(signatures=self._signatures).content)["signatures"],
            "revealed": {name: json.loads(each.content) for name, each in self._revealed.items()},
        }
        write_durably(self._folder / _STATE, canonical(content))

    @classmethod
    def resumed(cls, folder: Path) -> "ServerRound | None":
        """Return the attempt that a killed server left in `folder` after it had frozen the list of replies, if any.

        Raises Refusal E_SECAGG_MESSAGE if its files are damaged, OSError.
        """
        if not (folder / _STATE).exists():
            return None
        content = json.loads((folder / _STATE).read_bytes())
        roster, header = Roster.parse(canonical(content["roster"])), Header.parse(canonical(content["header"]))
        self = cls(roster, header, folder, words=content["words"])
        self.advertised = Advertised.parse(canonical(content["advertised"]))
        self.sharing = tuple(content["sharing"])
        self.uploaded = Uploaded(hospitals=tuple(content["uploaded"]))
        self._uploads = set(self.uploaded.hospitals)
        self._signatures = Confirmations.parse(canonical({"signatures": content["signatures"]})).signatures
        self._revealed = {name: Revealed.parse(canonical(each)) for name, each in content["revealed"].items()}
        self._total = np.load(folder / _TOTAL, allow_pickle=False)
        return self

    def forget(self) -> None:
        """Remove what was stored; the new model is in a checkpoint, or the round is given up."""
        for name in (_STATE, _TOTAL):
            (self._folder / name).unlink(missing_ok=True)

    def _check_number(self, present: int) -> None:
        if present < self.roster.threshold:
            raise Refusal(reasons.SECAGG_TOO_FEW, present=present, needed=self.roster.threshold)


def _require(holds: bool) -> None:
    """Raises Refusal E_SECAGG_STEP."""
    if not holds:
        raise Refusal(reasons.SECAGG_STEP)
