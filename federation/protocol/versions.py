"""Which versions of fedthorax work together in a study (docs/upgrading.md states the policy).

A server accepts nodes of its own series, which is the first two numbers of a version, and of older series from
OLDEST_NODE on. A node is never newer than its server: the server is upgraded first. The ingress checks this when a
node connects, so that the hospital reads the code in its own log. The handshake of each run checks it again.
"""

import re
from typing import NamedTuple

from federation.protocol import reasons
from models.refusal import Reason

OLDEST_NODE = "0.1"
VERSION_HEADER = "x-fedthorax-version"  # a gateway sends it with each request to the Fleet API


class Series(NamedTuple):
    """The first two numbers of a version. Releases of one series differ in corrections only."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def series(release: str) -> Series:
    """Return the series of a version such as "0.1.3" or "0.2". Raises ValueError for anything else."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})(?!\d)", release, re.ASCII)
    if found is None:
        raise ValueError(f"not a version: {release!r}")
    return Series(int(found[1]), int(found[2]))


def who_must_upgrade(node: str, server: str, *, oldest: str = OLDEST_NODE) -> Reason | None:
    """Return why a node of this version cannot take part in a study of this server; None if it can."""
    try:
        theirs = series(node)
    except ValueError:
        return reasons.SITE_OUTDATED
    if theirs > series(server):
        return reasons.SERVER_OUTDATED
    return reasons.SITE_OUTDATED if theirs < series(oldest) else None
