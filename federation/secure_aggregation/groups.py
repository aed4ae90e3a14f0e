"""Groups of hospitals whose updates are summed apart, so that a median over the sums can leave out a spoilt one.

Who is in which group depends only on the approved roster and on the number of groups. Each gateway computes it itself,
and a server cannot try again until it likes the groups. A group is a roster of its own: its digest is in the header of
each message, so that a hospital takes part only in the sums of its own group.
"""

import hashlib

from federation.secure_aggregation import reasons
from federation.secure_aggregation.roster import MIN_PEERS, Roster
from models.refusal import Refusal


def groups_of(roster: Roster, count: int) -> tuple[Roster, ...]:
    """Deal the hospitals out to `count` groups, whose sizes differ by at most one; 0: one group of all.

    Raises Refusal E_SECAGG_ROSTER_SMALL if a group would have fewer than three hospitals.
    """
    if count == 0:
        return (roster,)
    if len(roster.members) < MIN_PEERS * count:
        raise Refusal(reasons.SECAGG_ROSTER_SMALL, needed=MIN_PEERS * count, present=len(roster.members))
    digest = roster.digest
    order = sorted(roster.by_name, key=lambda name: hashlib.sha256(f"{digest}|{name}".encode()).digest())
    dealt = [sorted(order[first::count]) for first in range(count)]
    return tuple(Roster(members=tuple(roster.by_name[name] for name in names)) for names in dealt)


def own_group(roster: Roster, count: int, key: bytes) -> Roster:
    """Return the group of the hospital whose gateway has this public key.

    Raises Refusal: E_SECAGG_ROSTER_SMALL, E_SECAGG_MEMBER if it is in none.
    """
    for group in groups_of(roster, count):
        if any(member.key == key for member in group.members):
            return group
    raise Refusal(reasons.SECAGG_MEMBER)


def lists_of(roster: Roster, key: bytes) -> set[str]:
    """Return the digests of the roster and of each group in which the hospital with this public key can be."""
    groups = (group for count in range(1, len(roster.members) // MIN_PEERS + 1) for group in groups_of(roster, count))
    return {roster.digest} | {group.digest for group in groups if any(member.key == key for member in group.members)}
