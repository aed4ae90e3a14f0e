"""Which protection a study of so many hospitals gets by default: the table of docs/choosing-protection.md.

Masks hide single updates from the server; centred clipping compares them to stop a hostile hospital. No study has both
fully. With few hospitals a hostile one in a masked sum costs more than what the sum hides from the server; with many it
costs little.
"""

from dataclasses import dataclass

from federation.protocol.study_config import LEAST_SECURE_SITES
from federation.secure_aggregation.roster import threshold_of

ONE_SUM_FROM = 9  # hospitals: one that is hostile and keeps its gateway costs at most 0.02 of the AUROC
GROUPS_FROM = {12: 3, 20: 5}  # hospitals: number of groups, with four hospitals or more in each


@dataclass(frozen=True)
class Protection:
    """A strategy, whether the hospitals mask their updates, and in how many groups (0: one sum of all)."""

    strategy: str
    secure: bool
    groups: int = 0


def recommended(sites: int) -> Protection:
    """Return the protection of a study with `sites` hospitals, at least three."""
    if sites < ONE_SUM_FROM:
        return Protection("CenteredClip", secure=False)
    groups = max((groups for least, groups in GROUPS_FROM.items() if sites >= least), default=0)
    return Protection("FedAvg", secure=True, groups=groups)


def fitting_quorum(sites: int, *, secure: bool) -> int:
    """Return with how many replies a round of `sites` hospitals counts: more than two thirds.

    Masks need so many (`threshold_of`). Without masks one hostile hospital is then less than half of a round. But
    without masks one of three hospitals may be missing: otherwise each absence would lose a round.
    """
    needed = threshold_of(sites)
    return needed if secure or sites < LEAST_SECURE_SITES else min(needed, sites - 1)
