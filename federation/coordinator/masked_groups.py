"""A masked round in groups: one `MaskedRound` for each group of hospitals, and the median over their sums.

A group that loses its round counts as one that changes nothing; the round needs more than half of the groups. A sum
that a group has revealed is kept in the group's folder until the model moves, because its hospitals train this model no
more: if the round is lost, the next attempt uses it, and asks only the other groups.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from federation.coordinator.masked_round import LAST_STEPS_SECONDS, MaskedRound
from federation.secure_aggregation import reasons
from federation.secure_aggregation.group_median import GroupSum, Moments, least_groups, median_of
from federation.secure_aggregation.masking import Words
from federation.secure_aggregation.messages import Header
from federation.secure_aggregation.reply_vector import Mean, Settings
from federation.secure_aggregation.roster import Roster
from federation.secure_aggregation.server_round import ServerRound
from models.refusal import Refusal

log = logging.getLogger(__name__)


@dataclass
class Group:
    """A group's round. `is_kept`: whether its sum was revealed in an earlier attempt. `sum`: once it is unmasked."""

    roster: Roster
    settings: Settings
    round: MaskedRound
    is_kept: bool = False
    sum: GroupSum | None = None

    def unmask(self, seconds: float) -> None:
        """Unmask the group's sum, if enough of its hospitals are there."""
        try:
            total, names = self.round.unmask(seconds)
        except Refusal as refusal:
            log.warning("a group of %d hospitals has no sum: %s", len(self.roster.members), refusal)
        else:
            self.sum = GroupSum(total, self.settings, names)


class MaskedGroups:
    """The rounds of all groups, used like one `MaskedRound`.

    `count`: how many groups there are; those that are not among `groups` have no sum. `before`: of the model that is
    trained. `quorum`: least number of replies in all groups together; with fewer, nothing is unmasked. `number`: of the
    round.
    """

    def __init__(
        self, groups: Sequence[Group], count: int, before: Moments, *, quorum: int = 0, number: int = 0
    ) -> None:
        self._groups, self._count, self._before, self._quorum, self.number = groups, count, before, quorum, number
        self._by_site = {name: group for group in groups for name in group.roster.by_name}

    @classmethod
    def opened(
        cls,
        rosters: Sequence[Roster],
        header: Header,
        settings: Settings,
        expected: Iterable[str],
        folder: Path,
        *,
        before: Moments,
        seconds: float,
        quorum: int,
    ) -> "MaskedGroups":
        """Open an attempt at a round; the arguments are those of one sum over all hospitals. `folder`: of the state."""
        present = set(expected)
        groups = []
        for place, roster in enumerate(rosters):
            own = settings_of_group(settings, roster)
            its = Header.model_validate({**header.model_dump(), "roster": roster.digest, "settings": own.digest})
            begun = _begun(folder, place, its.model)
            if begun is not None and begun.can_unmask and begun.header.settings == own.digest:
                groups.append(Group(roster, own, _resumed(begun), is_kept=True))
                continue

            def make(header: Header, roster: Roster = roster, place: int = place) -> ServerRound:
                return ServerRound(roster, header, _folder(folder, place), words=settings.words)

            here = present & set(roster.by_name)
            groups.append(Group(roster, own, MaskedRound(its, own, make, here, seconds=seconds)))
        return cls(groups, len(rosters), before, quorum=quorum, number=header.round)

    @classmethod
    def resumed(
        cls, rosters: Sequence[Roster], model: str, settings: Settings, folder: Path, *, before: Moments
    ) -> "MaskedGroups | None":
        """Return the round over this model (a digest) that a killed server had begun, if it must be finished.

        That is if a group may have revealed its sum in part, or if more than half of the groups have revealed theirs.
        Raises Refusal E_SECAGG_MESSAGE if the stored state is damaged, OSError.
        """
        found = {place: _begun(folder, place, model) for place in range(len(rosters))}
        begun = {place: each for place, each in found.items() if each is not None}
        done = [each for each in begun.values() if each.can_unmask]
        under_way = [each for each in begun.values() if each.confirmations is not None and not each.can_unmask]
        if not under_way and len(done) < least_groups(len(rosters)):
            return None  # the next attempt uses what is there
        groups = [
            Group(rosters[place], settings_of_group(settings, rosters[place]), _resumed(each))
            for place, each in begun.items()
        ]
        return cls(groups, len(rosters), before, number=max(each.header.round for each in begun.values()))

    # --- what hospitals ask -------------------------------------------------------------------------------

    def answer(self, site: str, step: str, content: bytes, about: str) -> bytes | None:
        """Answer as `MaskedRound.answer` does, for the site's own group.

        Raises Refusal also: E_SECAGG_MEMBER, E_SECAGG_MODEL_USED if the group's sum is kept.
        """
        group = self._of(site)
        if step == "begin" and group.is_kept:
            raise Refusal(reasons.SECAGG_MODEL_USED)
        return group.round.answer(site, step, content, about)

    def _of(self, site: str) -> Group:
        if site not in self._by_site:
            raise Refusal(reasons.SECAGG_MEMBER)
        return self._by_site[site]

    # --- what the coordinator does ------------------------------------------------------------------------

    def left(self, site: str) -> None:
        """Wait no longer for a hospital."""
        if site in self._by_site:
            self._by_site[site].round.left(site)

    def upload(self, site: str, words: Words) -> None:
        """Add a masked reply to the sum of its group. Raises Refusal as `ServerRound.upload` does, E_SECAGG_MEMBER."""
        self._of(site).round.upload(site, words)

    def mean(self, seconds: float = LAST_STEPS_SECONDS) -> tuple[Mean, tuple[str, ...]]:
        """Return the median over the groups, and the hospitals in the sums that it uses.

        `seconds`: as in `MaskedRound.unmask`.
        Raises Refusal: E_SECAGG_GROUPS if too few groups have a sum, E_SECAGG_TOO_FEW. Nothing is revealed if this is
        known before.
        """
        there = [group for group in self._groups if group.round.replies]
        self._check(len(there))
        replies = sum(group.round.replies for group in there)
        if replies < self._quorum:
            raise Refusal(reasons.SECAGG_TOO_FEW, present=replies, needed=self._quorum)
        if sum(group.round.is_revealed for group in there) >= least_groups(self._count):
            seconds = min(seconds, LAST_STEPS_SECONDS)  # the others are not needed
        with ThreadPoolExecutor(len(there)) as pool:  # each waits for its hospitals
            list(pool.map(lambda group: group.unmask(seconds), there))
        sums = [group.sum for group in there if group.sum is not None]
        self._check(len(sums))
        for each in sums:
            if each.length is None:
                log.warning("a sum cannot be that of unchanged gateways, and is not used: %s", ", ".join(each.names))
        used = [each for each in sums if each.length is not None]
        names = sorted(name for each in used for name in each.names)
        return median_of(used, self._count, self._before), tuple(names)

    def _check(self, present: int) -> None:
        needed = least_groups(self._count)
        if present < needed:
            raise Refusal(reasons.SECAGG_GROUPS, present=present, needed=needed)

    @property
    def names(self) -> tuple[str, ...]:
        """The hospitals in the sums that were unmasked, also in those that cannot be used."""
        return tuple(sorted(name for group in self._groups if group.sum is not None for name in group.sum.names))

    @property
    def is_spoilt(self) -> bool:
        """Whether enough groups have a sum, and too few of these can be used."""
        sums, needed = [group.sum for group in self._groups if group.sum is not None], least_groups(self._count)
        return len(sums) >= needed > sum(each.length is not None for each in sums)

    @property
    def may_be_revealed(self) -> bool:
        """Whether a group may have revealed its sum in part, so that it must be finished."""
        return any(group.sum is None and group.round.may_be_revealed for group in self._groups)

    def forget(self) -> None:
        """Remove what was stored of the attempt: the new model is in a checkpoint."""
        for group in self._groups:
            group.round.forget()


def settings_of_group(settings: Settings, roster: Roster) -> Settings:
    """Return the settings of a group's sum. Shares stay those of the study's patients."""
    return settings.model_copy(update={"sites": len(roster.members)})


def _folder(folder: Path, place: int) -> Path:
    return folder / f"group-{place + 1}"


def _begun(folder: Path, place: int, model: str) -> ServerRound | None:
    """Return the stored state of a group's attempt over this model; that of another model is removed."""
    begun = ServerRound.resumed(_folder(folder, place))
    if begun is not None and begun.header.model != model:
        begun.forget()
        return None
    return begun


def _resumed(begun: ServerRound) -> MaskedRound:
    return MaskedRound(begun.header, None, lambda _: begun, (), seconds=0.0, server=begun)
