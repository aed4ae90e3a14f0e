"""A masked round through the real gateway: what leaves, what is refused, and what survives a restart."""

import asyncio
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from aiohttp import web
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from scipy.stats import chi2

from federation.approval.peers import PeerApprovals, identity_file
from federation.approval.studies import study_digest
from federation.coordinator.masked_reply import read_reply
from federation.coordinator.masked_round import MaskedRound
from federation.gateway import admission, task_exchange, task_intake
from federation.gateway.first_model import model_digest, write_chunks
from federation.gateway.flower_objects import Content
from federation.gateway.masked_only import check_masked
from federation.gateway.masked_rounds import MaskedRounds
from federation.gateway.model_votes import ModelVotes
from federation.gateway.reply import compose_records
from federation.gateway.reply_checks import Values
from federation.gateway.schema import Schema
from federation.gateway.task_intake import Task
from federation.ledger.chain import PASSED, ledger_file, read_lines
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.masked_replies import FIGURES, MASKED, WORDS
from federation.protocol.metric_allowlist import Kind
from federation.protocol.patient_counts import count_patients
from federation.secure_aggregation import reasons as secagg_reasons
from federation.secure_aggregation.answer_vector import AnswerSettings
from federation.secure_aggregation.ballots import Answer, Votes
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.masking import Masks, masked
from federation.secure_aggregation.messages import NOTHING, TRAIN, Advertised, Confirmations, Header, Sealed, Uploaded
from federation.secure_aggregation.reply_vector import Reply, Settings, mean_of, vector
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.server_round import ServerRound
from federation.secure_aggregation.site_round import SiteRound
from federation.secure_aggregation.store import Store
from federation.superlink.masked_address import PATH, ROUND_HEADER
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import PrivateRound, check_and_spend, spent_epsilon
from tests.federation.gateway.fake_server import Bench, Server
from tests.federation.gateway.messages import (
    MEAN,
    VARIANCE,
    EveryStudy,
    Model,
    arrays_of,
    first_of,
    model,
    record_of,
    schema_for,
    site_of_thirty,
    steps_at,
    train_here,
    trained,
)
from tests.federation.gateway.test_task_exchange import wait_until_idle

ALL_PARTS = 2**200 - 1
RNG = np.random.default_rng(1)
SCHEMA = replace(schema_for(20_000, 8), secure=True)
STEPS = steps_at(SCHEMA, 30)
CAME_IN = model(SCHEMA, RNG)
FIGURE = {"train_loss": 0.5, "auroc_severe": 0.75}
STUDY = '{"study": {}}'


@dataclass
class MaskedServer(Server):
    """A server with masked rounds, and two other hospitals. `round`: the current one.

    `stop_at`: the step that it does not answer. `first_answer`: what it says about the round, if not the truth.
    """

    round: MaskedRound | None = None
    stop_at: str = ""
    first_answer: bytes | None = None
    told: list[tuple[str, bytes]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        if not request.path.startswith(PATH):
            return await super().handle(request)
        step, body = request.path.removeprefix(PATH), await request.read()
        self.told.append((step, body))
        current, about = self.round, request.headers.get(ROUND_HEADER, "")
        if current is None or step == self.stop_at:
            return web.Response(status=204)
        if step == "begin" and self.first_answer is not None:
            return web.Response(body=self.first_answer)
        try:
            answer = await asyncio.to_thread(current.answer, "north", step, body, about)
        except Refusal as refusal:
            return web.json_response({"code": 409, "detail": refusal.code}, status=409)
        return web.Response(status=200 if answer else 204, body=answer or b"")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = site_of_thirty(tmp_path)
    train_here(site, SCHEMA, CAME_IN)
    return site


@dataclass
class Study:
    """The gateway's site, and two hospitals beside it that play their part in threads."""

    site: Site
    bench: Bench
    server: MaskedServer

    def __post_init__(self) -> None:
        folder = self.site.folder.parent
        self.others = {name: Identity.kept(folder / name) for name in ("south", "west")}
        self.stores = {name: Store(folder / f"{name}-state", folder / f"{name}-witness") for name in self.others}
        keys = {"north": Identity.kept(identity_file(self.site)).public}
        keys |= {name: key.public for name, key in self.others.items()}
        self.brings: dict[str, int] = {}  # what the others say that they have, if not all
        self.roster = Roster(members=tuple(Member(name=name, key=keys[name]) for name in sorted(keys)))
        self.settings = Settings(
            weights=SCHEMA.arrays[WEIGHTS].length,
            channels=8,
            figures=FIGURES,
            patients=200,
            longest=1000.0,
            sites=3,
        )

    def open(self, number: int = 3, settings: Settings | AnswerSettings | None = None, **different: object) -> Header:
        """Open a masked round, in which the other hospitals take part."""
        settings = settings or self.settings
        header = Header(
            study=study_digest(STUDY),
            run="trial-0123abcd",
            round=number,
            attempt=1,
            roster=self.roster.digest,
            kind=TRAIN,
            model=model_digest(write_chunks({name: group for name, group in CAME_IN.items() if group})),
            asked=NOTHING,
            settings=settings.digest,
            app="0" * 64,
        )
        header = Header.model_validate(header.model_dump() | different)
        folder = self.site.folder.parent / "server"

        def make(header: Header) -> ServerRound:
            for name in self.others:
                threading.Thread(target=self.play_quietly, args=(name, header, settings), daemon=True).start()
            return ServerRound(self.roster, header, folder, words=settings.words)

        self.server.round = MaskedRound(header, settings, make, ["north", *self.others], seconds=60)
        return header

    def words(self, settings: Settings | AnswerSettings) -> np.ndarray:
        """What each of the other hospitals adds."""
        assert isinstance(settings, Settings)
        reply = Reply(50, {}, np.zeros(8), np.zeros(8), [np.zeros(settings.weights)])
        return np.concatenate(list(vector(reply, settings)))

    def play_quietly(self, name: str, header: Header, settings: Settings | AnswerSettings) -> None:
        with suppress(Refusal):  # the round is lost, because the gateway refused
            self.play(name, header, settings)

    def play(self, name: str, header: Header, settings: Settings | AnswerSettings) -> None:
        round_, pause = self.server.round, threading.Event()
        assert round_ is not None

        def ask(step: str, content: bytes = b"") -> bytes:
            ends = monotonic() + 90
            while (answer := round_.answer(name, step, content, header.digest)) is None:
                if monotonic() > ends:  # the test has ended
                    raise Refusal(secagg_reasons.SECAGG_STEP)
                pause.wait(0.02)
            return answer

        mine = SiteRound(self.stores[name], self.others[name], self.roster, header)
        own = mine.advertise(self.brings.get(name, ALL_PARTS))
        sealed = mine.share(Advertised.parse(ask("advertise", own.content)))
        masks = mine.mask(Sealed.parse(ask("share", sealed.content)))
        round_.upload(name, np.concatenate(list(masked(iter([self.words(settings)]), masks))))
        signed = mine.confirm(Uploaded.parse(ask("uploaded")))
        confirmations = Confirmations.parse(ask("confirm", signed.content))
        ask("reveal", mine.reveal(confirmations).content)

    def work(
        self,
        out: Model,
        figures: Mapping[str, float] = FIGURE,
        *,
        leak: Callable[[Message], object] = lambda reply: None,
    ) -> Message:
        """Let the node train and report these figures, and return what the server receives.

        `leak`: changes what the app replies.
        """
        settings = ConfigRecord({"server-round": 3, "ledger-head": "", "ledger-lines": 0})
        records = {name: record_of(arrays) for name, arrays in CAME_IN.items() if arrays}
        self.server.give(RecordDict({**records, "config": settings}))  # type: ignore[dict-item]
        wait_until_idle(self.bench)  # before that, the gateway gives no task
        with self.bench.node() as node:
            task = node.fetch()
            assert task is not None
            replied = {name: record_of(arrays) for name, arrays in out.items() if arrays}
            metrics = MetricRecord({**figures, "num-examples": 30})
            reply = Message(RecordDict({**replied, "metrics": metrics}), reply_to=task)  # type: ignore[dict-item]
            leak(reply)
            node.push(reply)
            return self.reply()

    def reply(self, count: int = 1) -> Message:
        """The last reply, once there are so many."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            replies = self.server.replies
            if len(replies) >= count and replies[-1][1].object_id in self.server.received:
                return self.server.last_reply()
            time.sleep(0.02)
        raise AssertionError("no reply")

    def kinds(self) -> list[str]:
        return [line.kind for line in read_lines(ledger_file(self.site))]

    def approve(self, roster: Roster | None = None) -> None:
        PeerApprovals(self.site).approve(roster or self.roster, by="a test")


@pytest.fixture
def study(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    def schema_of(*_: object) -> Schema:
        return SCHEMA

    monkeypatch.setattr(task_intake, "schema_of", schema_of)
    monkeypatch.setattr(task_intake, "names_by_digest", lambda folder: EveryStudy())
    monkeypatch.setattr(admission, "first_model_of", lambda *_: arrays_of(first_of(SCHEMA)))
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    server = MaskedServer(study=STUDY)
    bench = Bench(site, server)
    yield Study(site, bench, server)
    bench.close()


def short(out: Model) -> Model:
    """The reply with a short update of all weights."""
    weights = CAME_IN["arrays"][WEIGHTS]
    moved = weights + RNG.normal(scale=0.01, size=weights.size).astype(np.float32)
    return {**out, "arrays": {WEIGHTS: moved}}


def finish(study: Study, reply: Message) -> np.ndarray:
    """Let the server unmask the sum."""
    shared = study.server.round
    assert shared is not None
    shared.upload("north", reply.content.array_records[MASKED][WORDS].numpy())
    wait_for(lambda: shared.replies == 3)  # the other two reply in threads
    total, present = shared.unmask(60)
    assert present == ("north", "south", "west")
    return total


def test_only_masked_words_leave_and_the_sum_is_that_of_the_update(study: Study) -> None:
    study.approve()
    study.open()
    out = short(trained(CAME_IN, RNG, STEPS))
    reply = study.work(out)
    assert set(reply.content) == {MASKED, "ledger"}
    sent = b"".join(study.server.received.values()) + b"".join(body for _, body in study.server.told)
    for plain in (out["arrays"][WEIGHTS], out["arrays"][WEIGHTS] - CAME_IN["arrays"][WEIGHTS], out["buffers"][MEAN]):
        assert plain.tobytes()[:64] not in sent
    assert b"auroc_severe" not in b"".join(study.server.received.values())
    mean = mean_of(finish(study, reply), study.settings, 3)
    assert mean.patients == 130
    update = out["arrays"][WEIGHTS].astype(np.float64) - CAME_IN["arrays"][WEIGHTS]
    np.testing.assert_allclose(mean.changes, 30 / 130 * update, atol=1e-5)
    np.testing.assert_allclose(mean.means, 30 / 130 * out["buffers"][MEAN], atol=1e-6)
    assert out["buffers"][VARIANCE].shape == mean.variances.shape
    assert mean.figures == pytest.approx(FIGURE)
    kinds = study.kinds()
    assert kinds.index("masking") < kinds.index("masked: sum may be revealed")
    assert "peers approval" in kinds


LOSS = {**FIGURE, "loss_severe": 0.5}


def test_vote_is_in_the_sum_and_counts_once_for_a_hospital_of_any_size(study: Study) -> None:
    study.approve()
    study.open()
    mean = mean_of(finish(study, study.work(short(trained(CAME_IN, RNG, STEPS)), LOSS)), study.settings, 3)
    assert mean.votes == Votes(worse=0, not_worse=1, no_vote=2)
    assert "masked: model found much worse" not in study.kinds()


def test_hospital_without_a_loss_does_not_vote(study: Study) -> None:
    study.approve()
    study.open()
    mean = mean_of(finish(study, study.work(short(trained(CAME_IN, RNG, STEPS)))), study.settings, 3)
    assert mean.votes == Votes(no_vote=3)


@pytest.mark.parametrize("worse", [{"loss_severe": 2.5}, {"loss_severe": 0.4, "auroc_severe": 0.05}], ids=str)
def test_much_worse_model_gets_a_vote_and_is_not_what_the_next_one_is_compared_with(
    study: Study, worse: dict[str, float]
) -> None:
    """The study may go back behind it; the ledger shows how the hospital voted."""
    good = {"loss_severe": 0.4, "auroc_severe": 0.95}
    votes = ModelVotes(study.site.folder / "gateway" / "votes")
    votes.cast("trial-0123abcd", "e" * 64, good, count_patients(study.site))
    chains = study.site.folder / "gateway" / "models" / "trial-0123abcd" / "state.json"
    before = json.loads(chains.read_text())
    study.approve()
    study.open()
    figures = {**FIGURE, **worse}
    mean = mean_of(finish(study, study.work(short(trained(CAME_IN, RNG, STEPS)), figures)), study.settings, 3)
    assert mean.votes == Votes(worse=1, no_vote=2)
    assert "masked: model found much worse" in study.kinds()
    after = json.loads(chains.read_text())
    assert [chain["round"] for chain in after["chains"]] == [chain["round"] for chain in before["chains"]] == [1]
    assert after["tasks"] == before["tasks"] + 1


@pytest.mark.slow
def test_epsilon_of_a_private_study_is_all_that_leaves_beside_the_words(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = replace(SCHEMA, private_round=PrivateRound(1.0, 0.1, 10, 1e-5))
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: private)
    check_and_spend(study.site, PrivateRound(1.0, 0.1, 10, 1e-5), run="another")  # computes the cost of a step
    study.approve()
    study.open()
    reply = study.work(short(trained(CAME_IN, RNG, STEPS)), {"loss_severe": 0.5})
    assert set(reply.content) == {MASKED, "metrics", "ledger"}
    spent = spent_epsilon(study.site, delta=1e-5, run="trial-0123abcd")
    assert dict(reply.content.metric_records["metrics"]) == {"epsilon": spent} and spent > 0
    assert read_reply(reply, words=study.settings.words, is_private=True).epsilon == spent
    mean = mean_of(finish(study, reply), study.settings, 3)
    assert mean.figures == pytest.approx({"loss_severe": 0.5})


def refused(study: Study, out: Model | None = None) -> str:
    reply = study.work(out or short(trained(CAME_IN, RNG, STEPS)))
    assert reply.has_error()
    assert not any(step in ("advertise", "share") for step, _ in study.server.told)
    return reply.error.reason


def test_nothing_is_sent_without_an_approved_list(study: Study) -> None:
    study.open()
    assert refused(study) == "E_SECAGG_ROSTER"


def test_other_list_than_the_approved_one_is_refused(study: Study) -> None:
    study.approve(Roster(members=study.roster.members[:2]))
    study.open()
    assert refused(study) == "E_SECAGG_ROSTER"


def test_revoked_list_is_refused(study: Study) -> None:
    study.approve()
    PeerApprovals(study.site).revoke(study.roster.digest, by="a test")
    study.open()
    assert refused(study) == "E_SECAGG_ROSTER"


@pytest.mark.parametrize("different", [{"model": "f" * 64}, {"study": "f" * 64}])
def test_round_that_is_not_that_of_the_task_is_refused(study: Study, different: dict[str, object]) -> None:
    study.approve()
    study.open(**different)  # type: ignore[arg-type]
    assert refused(study) == "E_SECAGG_SETTINGS"


@pytest.mark.parametrize(
    "different", [{"weights": 19_999}, {"channels": 0}, {"figures": ("auroc_severe",)}, {"sites": 4}]
)
def test_settings_that_do_not_fit_the_study_are_refused(study: Study, different: dict[str, object]) -> None:
    study.approve()
    study.open(settings=Settings.model_validate(study.settings.model_dump() | different))
    assert refused(study) == "E_SECAGG_SETTINGS"


@pytest.mark.parametrize(
    "content",
    [b"[" * 60_000, b"\xff", b"{", b"7", b"null", b"[]", b"{}", b'{"header": 7, "settings": {}}', b'{"header": {}}'],
    ids=lambda content: repr(content[:30]),
)
def test_answer_that_does_not_describe_a_round_is_refused(study: Study, content: bytes) -> None:
    study.approve()
    study.open()
    study.server.first_answer = content
    assert refused(study) in {"E_SECAGG_SETTINGS", "E_SECAGG_MESSAGE"}


def test_sparse_update_is_refused(study: Study) -> None:
    study.approve()
    study.open()
    out = short(trained(CAME_IN, RNG, STEPS))
    out["arrays"][WEIGHTS][:5000] = CAME_IN["arrays"][WEIGHTS][:5000]
    assert refused(study, out) == "E_SECAGG_SPARSE"


def test_long_update_is_clipped(study: Study) -> None:
    study.approve()
    settings = Settings.model_validate(study.settings.model_dump() | {"longest": 0.1})
    study.open(settings=settings)
    out = short(trained(CAME_IN, RNG, STEPS))
    mean = mean_of(finish(study, study.work(out)), settings, 3)
    assert np.linalg.norm(mean.changes) == pytest.approx(0.1 * 30 / 130, rel=1e-3)


def test_restarted_gateway_helps_to_unmask(study: Study) -> None:
    """Without it the round would be lost, and the model could not be trained again."""
    study.approve()
    study.open()
    reply = study.work(short(trained(CAME_IN, RNG, STEPS)))
    study.bench.stop_gateway()
    study.bench.start_gateway()
    assert mean_of(finish(study, reply), study.settings, 3).patients == 130
    wait_for(lambda: not list((study.site.folder / "gateway" / "secagg").glob("*.begun")))


def test_plain_study_is_refused_if_the_site_requires_masks(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: replace(SCHEMA, secure=False))
    settings = study.site.folder / "site.toml"
    settings.write_text(
        settings.read_text().replace("require_secure_aggregation = false", "require_secure_aggregation = true")
    )
    study.bench.stop_gateway()
    study.bench.site = Site.open(study.site.folder)
    study.bench.start_gateway()
    study.server.give(
        RecordDict(
            {
                **{name: record_of(arrays) for name, arrays in CAME_IN.items()},
                "config": ConfigRecord({"server-round": 3, "ledger-head": "", "ledger-lines": 0}),
            }  # type: ignore[dict-item]
        )
    )
    with study.bench.node() as node:
        assert node.fetch() is None
        assert study.reply().error.reason == "E_SECAGG_REQUIRED"


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_key_of_the_gateway_is_made_once(study: Study) -> None:
    key = identity_file(study.site).read_bytes()
    study.bench.stop_gateway()
    study.bench.start_gateway()
    assert identity_file(study.site).read_bytes() == key


def seems_random(words: np.ndarray) -> bool:
    """Whether the bytes of words look like random ones: their frequencies at each of the four places, and zlib.

    Random words fail once in some hundred million.
    """
    if len(zlib.compress(words.tobytes(), 9)) <= 0.999 * words.nbytes:
        return False
    counts = [np.bincount(place, minlength=256) for place in words.view(np.uint8).reshape(-1, 4).T]
    expected = words.size / 256
    return all(chi2.sf(float(((count - expected) ** 2).sum() / expected), 255) > 1e-9 for count in counts)


def correlation(words: np.ndarray, plain: np.ndarray) -> float:
    """The correlation of the last words, as signed numbers, with the numbers in the vector's weights."""
    return float(abs(np.corrcoef(words[-len(plain) :].view(np.int32), plain)[0, 1]))


def test_masked_words_look_random_also_over_two_rounds_of_equal_plaintext(study: Study) -> None:
    study.approve()
    out = short(trained(CAME_IN, RNG, STEPS))
    update = out["arrays"][WEIGHTS].astype(np.float64) - CAME_IN["arrays"][WEIGHTS]
    limit = 6 / np.sqrt(update.size)  # random words are beyond it once in five hundred million
    sent = []
    for attempt in (1, 2):
        study.open(attempt=attempt)
        sent.append(study.work(out).content.array_records[MASKED][WORDS].numpy())
        study.server.replies.clear()
    for words in (*sent, sent[1] - sent[0], sent[1] ^ sent[0]):
        assert seems_random(words)
        assert correlation(words, update) < limit
        assert correlation(words, out["arrays"][WEIGHTS]) < limit
    plain = np.concatenate(list(vector(Reply(30, FIGURE, np.zeros(8), np.ones(8), [update]), study.settings)))
    assert not seems_random(plain), "the test must notice words without masks"
    assert correlation(plain, update) > 0.99


async def not_masked(self: object, task: object, content: Content, values: object, vote: object) -> Content:
    return content


async def not_masked_but_named_so(
    self: object, task: object, content: Content, values: object, vote: object
) -> Content:
    return Content(arrays={MASKED: {WORDS: content.arrays["arrays"][WEIGHTS]}})


async def masked_beside_others(
    self: MaskedRounds, task: Task, content: Content, values: Values, vote: Answer
) -> Content:
    return Content(arrays={**content.arrays, **(await MASK(self, task, content, values, vote)).arrays})


MASK = MaskedRounds.mask


@pytest.mark.parametrize("broken", [not_masked, not_masked_but_named_so, masked_beside_others])
def test_reply_that_is_not_masked_does_not_leave(
    study: Study, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., object]
) -> None:
    monkeypatch.setattr(MaskedRounds, "mask", broken)
    nothing_leaves(study)


def test_reply_whose_masks_were_left_out_does_not_leave(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masks, "apply", lambda self, words: None)
    nothing_leaves(study)


def nothing_leaves(study: Study) -> None:
    study.approve()
    study.open()
    out = short(trained(CAME_IN, RNG, STEPS))
    reply = study.work(out)
    assert reply.has_error() and reply.error.reason == "E_REPLY_UNMASKED"
    assert study.server.received.keys() == {study.server.replies[-1][1].object_id}, "only the message of the code"
    refused = [line for line in read_lines(ledger_file(study.site)) if line.verdict == "E_REPLY_UNMASKED"]
    assert [(line.direction, line.kind) for line in refused] == [("out", "train")]
    assert not [
        line
        for line in read_lines(ledger_file(study.site))
        if (line.direction, line.kind) == ("out", "train") and line.verdict == PASSED
    ]


@pytest.mark.parametrize(("kind", "secure"), [("train", False), ("query.handshake", True)])
def test_replies_that_need_no_masks_pass(kind: Kind, secure: bool) -> None:
    plain = compose_records(Content(), {"metrics": MetricRecord({"train_loss": 0.5})})
    check_masked(kind, plain, {}.__getitem__, replace(SCHEMA, secure=secure))
    with pytest.raises(Refusal, match="E_REPLY_UNMASKED"):
        check_masked("train", plain, {}.__getitem__, replace(SCHEMA, secure=True))
