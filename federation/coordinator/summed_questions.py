"""Ask the sites about a model for sums only, in a study with secure aggregation.

`PlainSums` sums plain replies: of a simulation, where one machine holds all of them anyway. Where sites have gateways,
these mask the replies, and another class with the same method learns the sum alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from federation.coordinator.connected_sites import MAX_EXAMPLES, Records, Sites, ask_and_note, to_all
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, EXAMPLES, EXAMPLES_OF, FIGURES, LABELS, Figure, Kind
from federation.protocol.reply_validation import Expected, Sifted, decode
from federation.protocol.summed_answers import (
    LEAST_SITES,
    SUMMED,
    Summed,
    label_of,
    reported,
    sites_with,
    summands,
)
from models.familiarity import Moments, pool_moments

SumsAndMoments = tuple[Summed, dict[str, Moments]]


class Sums(Protocol):
    """Asks the sites for sums."""

    def ask(self, kind: Kind, records: Records, what: str) -> SumsAndMoments | None:
        """Return the sums over the sites, and for `evaluate.embed` the pooled moments by the record's name.

        None if fewer than LEAST_SITES sites are in the sum, or if the sum is lost.

        Parameters
        ----------
        kind : Kind
            One of `SUMMED`.
        records : Records
            The message: the model, a record `config`, and what else a question of this kind needs.
        what : str
            What is asked, for the history and those who follow the run.
        """
        ...


class PlainSums:
    """Sums of plain replies. `features`: numbers that the network computes per scan."""

    def __init__(
        self,
        sites: Sites,
        history: list[Mapping[str, Any]],
        say: Callable[[str], None],
        *,
        features: int,
        timeout_s: float,
    ) -> None:
        self._sites, self._history, self._say = sites, history, say
        self._features, self._timeout_s = features, timeout_s

    def ask(self, kind: Kind, records: Records, what: str) -> SumsAndMoments | None:
        """Ask all sites that are online and sum their replies, see `Sums`."""
        sifted = ask_and_note(
            self._sites, kind, to_all(records), self._expected(kind), what, self._history, self._say, self._timeout_s
        )
        if len(sifted.valid) < LEAST_SITES:
            self._say(f"{what}: sums over fewer than {LEAST_SITES} sites are not used")
            return None
        figures = self._sites.figures(sifted)
        summed = summed_over(kind, [figures[node] for node in sorted(figures)])
        return summed, _moments(kind, sifted, {node: int(each[EXAMPLES]) for node, each in figures.items()})

    def _expected(self, kind: Kind) -> Expected:
        allowed = {name: FIGURES[kind][name] for name in reported(kind)}
        allowed |= {name: Figure(0, MAX_EXAMPLES, EXAMPLES_OF[kind]) for name in SUMMED[kind].counts}
        if not SUMMED[kind].moments:
            return Expected({}, {}, allowed, MAX_EXAMPLES)
        moments, looks = (
            dict.fromkeys(("mean", "variance"), np.zeros(n, np.float32)) for n in (self._features, APPEARANCE_SIZE)
        )
        return Expected({}, {}, allowed, MAX_EXAMPLES, moments=moments, looks=looks)


def summed_over(kind: Kind, sites: Sequence[Mapping[str, float]]) -> Summed:
    """Return the sums over plain replies, given the figures of each site with its number of patients; at least one.

    As the gateways do it in masked sums, figures and counts of a label that fewer than LEAST_SITES sites have are left
    out.
    """
    patients = [int(each[EXAMPLES]) for each in sites]
    parts = [summands(each, kind) for each in sites]
    table = SUMMED[kind]
    counts = {name: sum(int(part.get(name, 0)) for part in parts) for name in table.counts}
    covered = {label: counts.get(sites_with(label), 0) >= LEAST_SITES for label in LABELS}
    means, known = {}, {}
    for name in table.means:
        having = [(part[name], n) for part, n in zip(parts, patients, strict=True) if name in part]
        if len(having) >= LEAST_SITES:
            total = sum(n for _, n in having)
            means[name] = sum(value * n for value, n in having) / total
            known[name] = total / sum(patients)
    return Summed(
        sites=len(sites),
        patients=sum(patients),
        counts={name: count if covered[label_of(name)] else 0 for name, count in counts.items()},
        means=means,
        known=known,
    )


def _moments(kind: Kind, sifted: Sifted[Any], patients: Mapping[int, int]) -> dict[str, Moments]:
    """Return the moments over all sites' patients, by record."""
    pooled = {}
    for record in SUMMED[kind].moments:
        sites = [
            Moments(**decode(reply.content.array_records[record]), patients=patients[node])
            for node, reply in sifted.valid.items()
        ]
        pooled[record] = Moments(*pool_moments(sites, robust=False), patients=sum(patients.values()))
    return pooled
