"""Hospitals and a server that play a masked round in one process."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation import reasons
from federation.secure_aggregation.answer_vector import Answer, AnswerSettings, answer_vector
from federation.secure_aggregation.fixed_point import Words
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.masking import masked
from federation.secure_aggregation.messages import NOTHING, TRAIN, Header
from federation.secure_aggregation.reply_vector import Reply, Settings, vector
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.server_round import ServerRound
from federation.secure_aggregation.site_round import Limits, SiteRound
from federation.secure_aggregation.store import Store
from models.refusal import Refusal

STEPS = ("advertise", "share", "upload", "confirm", "reveal")
FIGURES = ("auroc_severe", "train_loss")
NEVER: Mapping[str, str] = {}


def digest(number: int) -> str:
    return f"{number:064x}"


def names_of(count: int) -> list[str]:
    return [f"hospital-{number:03}" for number in range(count)]


@dataclass
class Rig:
    """`count` hospitals with stores below `folder`. `notes`: what each wrote to its ledger.

    `restarts`: whether a hospital opens its stored state anew at each step, as if it had been killed before.
    """

    folder: Path
    count: int
    weights: int = 50
    channels: int = 3
    limits: Limits = field(default_factory=Limits)
    notes: list[str] = field(default_factory=list)
    restarts: bool = True
    stores: dict[str, Store] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = names_of(self.count)
        self.identities = {name: Identity.kept(self._site(name) / "secagg") for name in self.names}
        members = tuple(Member(name=name, key=self.identities[name].public) for name in self.names)
        self.roster = Roster(members=members)
        rng = np.random.default_rng(self.count)
        self.replies = {name: self._reply(rng) for name in self.names}
        self.settings = Settings(
            weights=self.weights,
            channels=self.channels,
            figures=FIGURES,
            patients=sum(reply.patients for reply in self.replies.values()),
            longest=3 * max(float(np.linalg.norm(np.concatenate(list(r.changes)))) for r in self.replies.values()),
            sites=self.count,
        )

    def _site(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _reply(self, rng: np.random.Generator) -> Reply:
        return Reply(
            patients=int(rng.integers(20, 500)),
            figures={name: float(rng.uniform()) for name in FIGURES},
            means=rng.normal(size=self.channels).astype(np.float32),
            variances=rng.uniform(0.1, 3, size=self.channels).astype(np.float32),
            changes=[rng.normal(scale=1e-2, size=self.weights).astype(np.float32)],
        )

    def header(self, number: int = 1, attempt: int = 1, *, model: int = 1, run: str = "covid-1") -> Header:
        return Header(
            study=digest(7),
            run=run,
            round=number,
            attempt=attempt,
            roster=self.roster.digest,
            kind=TRAIN,
            model=digest(model),
            asked=NOTHING,
            settings=self.settings.digest,
            app=digest(8),
        )

    def store(self, name: str) -> Store:
        """The hospital's store, opened anew if hospitals restart."""
        if self.restarts and name in self.stores:
            self.stores.pop(name).close()
        if name not in self.stores:
            self.stores[name] = Store(self._site(name) / "state", self._site(name) / "witness")
        return self.stores[name]

    def site(self, name: str, header: Header) -> SiteRound:
        """The gateway of a hospital."""
        return SiteRound(self.store(name), self.identities[name], self.roster, header, self.limits, self.noted)

    def noted(self, note: str, digest: str) -> None:
        self.notes.append(note)

    def server(self, header: Header) -> ServerRound:
        return ServerRound(self.roster, header, self.folder / "server", words=len(self.words(self.names[0])))

    def words(self, name: str) -> Words:
        """The hospital's vector, not masked."""
        return np.concatenate(list(vector(self.replies[name], self.settings)))

    def plain_sum(self, names: Iterable[str]) -> Words:
        return np.sum([self.words(name) for name in names], axis=0, dtype=np.uint32)


COUNTS, MEANS, MOMENTS = ("sites_severe", "logits_severe_1_07"), ("auroc_severe", "scanner_chance"), {"looks": 3}


@dataclass
class QuestionRig(Rig):
    """Hospitals that answer a question about a model. Some lack a figure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = np.random.default_rng([self.count, 1])
        self.answers = {name: self._answer(rng, lacks=at % 3 == 2) for at, name in enumerate(self.names)}
        self.question = AnswerSettings(
            kind="evaluate.test",
            counts=COUNTS,
            means=MEANS,
            moments=MOMENTS,
            patients=4 * sum(answer.patients for answer in self.answers.values()),
            sites=self.count,
        )

    def _answer(self, rng: np.random.Generator, *, lacks: bool) -> Answer:
        means = {name: float(rng.uniform()) for name in MEANS[: 1 if lacks else 2]}
        return Answer(
            patients=int(rng.integers(20, 500)),
            counts={"sites_severe": 1, "logits_severe_1_07": int(rng.integers(0, 20))},
            means=means,
            moments={name: (rng.normal(size=n), rng.uniform(0, 3, size=n)) for name, n in MOMENTS.items()},
        )

    def header(
        self,
        number: int = 4,
        attempt: int = 1,
        *,
        model: int = 1,
        run: str = "covid-1",
        kind: str = "evaluate.test",
        asked: str = digest(9),
    ) -> Header:
        about = super().header(number, attempt, model=model, run=run).model_dump()
        return Header.model_validate(about | {"kind": kind, "asked": asked, "settings": self.question.digest})

    def words(self, name: str) -> Words:
        return answer_vector(self.answers[name], self.question)


def play(rig: Rig, header: Header, leaves: Mapping[str, str] = NEVER, *, until: str = "reveal") -> ServerRound:
    """Play a round up to a step. `leaves`: the step before which a hospital leaves. Raises what loses the round."""

    def here(step: str) -> list[str]:
        return [name for name in rig.names if name not in leaves or STEPS.index(leaves[name]) > STEPS.index(step)]

    server = rig.server(header)
    for name in here("advertise"):
        server.advertise(name, rig.site(name, header).advertise())
    advertised = server.freeze_advertised()
    if until == "advertise":
        return server
    for name in here("share"):
        server.share(name, rig.site(name, header).share(advertised))
    sharing = server.freeze_sharing()
    if until == "share":
        return server
    for name in here("upload"):
        server.upload(name, mask(rig, name, header, server))
    uploaded = server.freeze_uploaded()
    assert set(uploaded.hospitals) <= set(sharing)
    if until == "upload":
        return server
    for name in here("confirm"):
        server.confirm(name, rig.site(name, header).confirm(uploaded))
    if (confirmations := server.confirmations) is None:
        raise Refusal(reasons.SECAGG_TOO_FEW, present=len(here("confirm")), needed=rig.roster.threshold)
    if until == "confirm":
        return server
    for name in here("reveal"):
        server.reveal(name, rig.site(name, header).reveal(confirmations))
    return server


def mask(rig: Rig, name: str, header: Header, server: ServerRound) -> Words:
    """The masked reply of a hospital."""
    masks = rig.site(name, header).mask(server.shares_for(name))
    return np.concatenate(list(masked(iter([rig.words(name)]), masks)))


def refused(step: Callable[[], object]) -> str:
    """The code with which a step is refused."""
    try:
        step()
    except Refusal as refusal:
        return refusal.code
    return ""


def plain_mean(replies: Sequence[Reply]) -> dict[str, NDArray]:
    """The mean as plaintext aggregation makes it: weighted by patients, pooled variances."""
    weights = np.array([reply.patients for reply in replies], float)
    share = weights / weights.sum()
    means = np.stack([np.asarray(reply.means, float) for reply in replies])
    pooled = share @ means
    variances = share @ np.stack([np.asarray(reply.variances, float) for reply in replies])
    changes = np.stack([np.concatenate([np.asarray(c, float) for c in reply.changes]) for reply in replies])
    return {"means": pooled, "variances": variances + share @ (means - pooled) ** 2, "changes": share @ changes}
