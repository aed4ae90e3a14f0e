"""Masked rounds at the coordinator: the same model as plaintext aggregation makes, over HTTP with three hospitals."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from federation.coordinator.accepted_model import SHRINK, Accepted
from federation.coordinator.masked_round import MaskedRound
from federation.coordinator.masked_strategy import MaskedStrategy
from federation.coordinator.masked_study import MaskedStudy
from federation.gateway.first_model import model_digest, write_chunks
from federation.gateway.reasons import MODEL_DRIFT
from federation.protocol.batch_norm import combine
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS
from federation.protocol.masked_replies import FIGURES, MASKED, WORDS
from federation.protocol.metric_allowlist import FIGURES as ALL
from federation.protocol.reply_validation import decode, encode
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, SLOTS, WORSE, Answer, Ballot
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.fixed_point import WIDE_WORDS, Words
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.masking import masked
from federation.secure_aggregation.messages import Advertised, Confirmations, Header, Sealed, Uploaded
from federation.secure_aggregation.reply_vector import Reply, Settings, vector
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.site_round import SiteRound
from federation.secure_aggregation.store import Store
from federation.strategy.flower_strategies import build_strategy, strategy_state
from federation.strategy.guarded import RoundRules, StartState
from federation.strategy.round_report import RoundReport
from federation.superlink.masked_address import PATH, ROUND_HEADER, SITE_HEADER, WORD_HEADER, read_address
from models.refusal import Refusal
from tests.helpers.waiting import eventually

NAMES = {1: "north", 2: "south", 3: "west", 4: "east"}
PATIENTS = {1: 30, 2: 50, 3: 20, 4: 25}
APP, STUDY, RUN = "a" * 64, "b" * 64, "covid-1"
RNG = np.random.default_rng(3)
ALL_WORSE: Mapping[int, Answer] = dict.fromkeys(range(1, 5), WORSE)
MODEL = {WEIGHTS: RNG.standard_normal(300).astype(np.float32)}
BUFFERS = {
    BATCH_NORM + "running_mean": np.zeros(4, np.float32),
    BATCH_NORM + "running_var": np.ones(4, np.float32),
    BATCH_NORM + "num_batches_tracked": np.zeros(2, np.int64),
}


def changes(node: int, weights: NDArray) -> NDArray:
    """What training at a hospital adds: the same for the same model."""
    return (0.01 * (node + np.sin(np.arange(weights.size) + 1 + node) + 0.1 * weights)).astype(np.float32)


def moments(node: int) -> tuple[NDArray, NDArray]:
    return np.arange(4) / 7 + node, np.arange(4) / 3 + 0.5 * node


@dataclass
class Hospitals:
    """The hospitals' gateways in threads. `silent`: nodes that fail to train, by round.

    `far`: nodes that refuse the model, by round. `answers`: of the nodes about the model, by round. `patched`: by round
    a node, and what it adds to its words. `epsilon`: sent beside the words, if not 0.
    """

    folder: Path
    count: int = 3
    silent: Mapping[int, set[int]] = field(default_factory=dict)
    far: Mapping[int, set[int]] = field(default_factory=dict)
    answers: Mapping[int, Mapping[int, Answer]] = field(default_factory=dict)
    patched: Mapping[int, tuple[int, NDArray]] = field(default_factory=dict)  # by round: the node, and its words
    epsilon: float = 0.0
    seen: dict[int, NDArray] = field(default_factory=dict)  # the weights of each round
    models: set[str] = field(default_factory=set)  # digests
    stop_before: Mapping[int, str] = field(default_factory=dict)  # a step that a node does not do
    problems: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    rounds: dict[int, tuple[SiteRound, Header]] = field(default_factory=dict)
    lines: dict[int, int] = field(default_factory=dict)  # of each hospital's ledger
    is_over: bool = False  # the rounds have ended: who still waits for an answer gets none

    def __post_init__(self) -> None:
        self.identities = {node: Identity.kept(self.folder / f"key-{node}") for node in self.nodes}
        members = sorted((NAMES[node], key.public) for node, key in self.identities.items())
        self.roster = Roster(members=tuple(Member(name=name, key=key) for name, key in members))
        self.stores = {node: Store(self.folder / f"s{node}", self.folder / f"w{node}") for node in self.nodes}

    @property
    def nodes(self) -> list[int]:
        return list(NAMES)[: self.count]

    def roster_for(self, node: int) -> Roster:
        """The list of hospitals with which a gateway takes part."""
        return self.roster

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        messages, replies = list(messages), Queue[Message]()
        for message in messages:
            self.threads.append(threading.Thread(target=self.work, args=(message, replies), daemon=True))
            self.threads[-1].start()
        for _ in messages:
            yield replies.get(timeout=60)

    def work(self, message: Message, replies: "Queue[Message]") -> None:
        node = message.metadata.dst_node_id
        try:
            words, finish = self.masked_reply(node, message)
        except Exception as error:
            self.problems.append(error)
            code = error.code if isinstance(error, Refusal) else "E_SITE_FAILED"
            replies.put(_sent(Message(Error(1001, code), reply_to=message), node))
            return
        lines = self.lines[node] = self.lines.get(node, 0) + 2
        content = RecordDict(
            {
                MASKED: ArrayRecord({WORDS: Array(words)}),
                "ledger": ConfigRecord({"head": f"{lines:064x}", "lines": lines}),
            }
        )
        if self.epsilon:
            number = int(str(message.content.config_records["config"]["server-round"]))
            content["metrics"] = MetricRecord({"epsilon": self.epsilon * number})
        replies.put(_sent(Message(content, reply_to=message), node))
        try:
            finish()
        except Exception as error:
            self.problems.append(error)

    def masked_reply(self, node: int, message: Message) -> tuple[NDArray, Callable[[], None]]:
        """Return the masked words of a reply, and what does the last steps."""
        content = message.content
        number = int(str(content.config_records["config"]["server-round"]))
        if node in self.silent.get(number, set()):
            raise RuntimeError("the training failed")
        if node in self.far.get(number, set()):
            raise Refusal(MODEL_DRIFT)
        arrays = {name: decode(content.array_records[name]) for name in ("arrays", "buffers")}
        header, told = self.begin(node, number)
        settings = Settings.model_validate(told)
        assert header.model == model_digest(write_chunks(arrays))
        assert header.settings == settings.digest and header.app == APP
        self.seen[number] = arrays["arrays"][WEIGHTS]
        self.models.add(header.model)
        means, variances = moments(node)
        figures = {name: 0.1 * node for name in FIGURES}
        reply = Reply(PATIENTS[node], figures, means, variances, [changes(node, arrays["arrays"][WEIGHTS])])
        reply = replace(reply, ballot=Ballot.drawn(self.answers.get(number, {}).get(node, NOT_WORSE)))
        words = np.concatenate(list(vector(reply, settings)))
        if number in self.patched and self.patched[number][0] == node:
            words = words + self.patched[number][1]
        return self.mask(node, header, words)

    def begin(self, node: int, number: int) -> tuple[Header, Any]:
        """Return the header and the settings of a masked round."""
        asked = canonical({"run": RUN, "round": number, "app": APP})
        told = json.loads(self.ask(node, "begin", asked, ""))
        return Header.parse(canonical(told["header"])), told["settings"]

    def mask(self, node: int, header: Header, words: NDArray) -> tuple[NDArray, Callable[[], None]]:
        site = SiteRound(self.stores[node], self.identities[node], self.roster_for(node), header)
        self.rounds[node] = (site, header)
        advertised = self.ask(node, "advertise", site.advertise().content, header.digest)
        received = self.ask(node, "share", site.share(Advertised.parse(advertised)).content, header.digest)
        masks = site.mask(Sealed.parse(received))
        hidden = np.concatenate(list(masked(iter([words]), masks)))

        def finish() -> None:
            for step, do in self.last_steps(node, site, header):
                if self.stop_before.get(node) == step:
                    return
                do()

        return hidden, finish

    def last_steps(self, node: int, site: SiteRound, header: Header) -> Iterator[tuple[str, Any]]:
        uploaded = Uploaded.parse(self.ask(node, "uploaded", b"", header.digest))
        found: dict[str, Confirmations] = {}

        def confirm() -> None:
            answer = self.ask(node, "confirm", site.confirm(uploaded).content, header.digest)
            found["confirmations"] = Confirmations.parse(answer)

        def reveal() -> None:
            self.ask(node, "reveal", site.reveal(found["confirmations"]).content, header.digest)

        yield "confirm", confirm
        yield "reveal", reveal

    def ask(self, node: int, step: str, content: bytes, about: str) -> bytes:
        """Ask the coordinator, as the ingress passes it on, until there is an answer."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status, body = post(self.folder / "server", NAMES[node], step, content, about)
            if status == 200:
                return body
            if status != 204:
                raise RuntimeError(f"{step}: {status} {body!r}")
            if self.is_over:
                break
            time.sleep(0.05)
        raise TimeoutError(step)


def post(folder: Path, site: str, step: str, content: bytes, about: str, word: str = "") -> tuple[int, bytes]:
    address = read_address(folder)
    if address is None:
        return 204, b""
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)
    headers = {SITE_HEADER: site, ROUND_HEADER: about, WORD_HEADER: word or address.word}
    try:
        connection.request("POST", PATH + step, content, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ConnectionError, http.client.HTTPException):
        return 204, b""  # a gateway asks again if the connection broke
    finally:
        connection.close()


def _sent(message: Message, node: int) -> Message:
    message.metadata.__dict__["_src_node_id"] = node
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "server").mkdir()
    return tmp_path


def strategy_of(
    hospitals: Hospitals,
    reports: list[RoundReport],
    inner: FedAvg | None = None,
    *,
    max_lost: int = 2,
    is_private: bool = False,
    **start: Any,
) -> MaskedStrategy:
    masked_study = MaskedStudy(
        run=RUN,
        study=STUDY,
        roster=hospitals.roster,
        patients=2 * sum(PATIENTS[node] for node in hospitals.nodes),
        folder=hospitals.folder / "masked",
        names=NAMES,
        round_seconds=600.0,
        server_folder=hospitals.folder / "server",
        fixed=((0, 3),),
        is_private=is_private,
    )
    rules = RoundRules(quorum=3, metrics=ALL["train"], max_examples=1000, wait_s=1, max_lost_rounds=max_lost)
    state = StartState(buffers=BUFFERS, **start)
    return MaskedStrategy(inner or FedAvg(), rules, state, masked=masked_study, on_round=reports.append)


def run(strategy: MaskedStrategy, hospitals: Hospitals, rounds: int) -> None:
    with strategy.serving():
        strategy.start(grid=cast(Grid, hospitals), initial_arrays=encode(MODEL), num_rounds=rounds, timeout=60)
        hospitals.is_over = True
        for thread in hospitals.threads:
            thread.join(60)
        hospitals.is_over = False


def hasten(strategy: MaskedStrategy, number: int) -> None:
    """Give the hospitals two seconds for this round, and as long as they need for the others."""

    def next_is(round_number: int) -> None:
        strategy.masked.__dict__["round_seconds"] = 2.0 if round_number == number else 600.0

    def told(report: RoundReport) -> None:
        assert usual is not None
        usual(report)
        next_is(report.round + 1)

    usual, strategy.on_round = strategy.on_round, told
    next_is(1)


def until_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the coordinator wait as long as necessary for signatures, and briefly for the shares after them."""
    usual = MaskedRound.unmask

    def unmask(current: MaskedRound, seconds: float) -> tuple[Words, tuple[str, ...]]:
        def revealed() -> tuple[Words, tuple[str, ...]] | None:
            try:
                return usual(current, seconds)
            except Refusal:
                if current.may_be_revealed:
                    raise
                return None

        found = eventually(revealed)
        assert found is not None, "nobody has signed"
        return found

    monkeypatch.setattr(MaskedRound, "unmask", unmask)


def plain_round(inner: FedAvg, number: int, weights: NDArray, nodes: list[int]) -> NDArray:
    """The weights that the strategy makes of single replies."""
    messages = []
    for node in nodes:
        arrays = encode({WEIGHTS: weights + changes(node, weights)})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": PATIENTS[node]})})
        messages.append(Message(content, dst_node_id=1, message_type="train"))
    record = inner.aggregate_train(number, messages)[0]
    assert record is not None
    return record[WEIGHTS].numpy()


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam"])
def test_masked_rounds_give_the_model_of_plaintext_aggregation(folder: Path, name: str) -> None:
    hospitals, reports = Hospitals(folder), list[RoundReport]()
    strategy = strategy_of(hospitals, reports, build_strategy(name, {}))
    run(strategy, hospitals, 2)
    assert hospitals.problems == []
    weights, inner = MODEL[WEIGHTS], build_strategy(name, {})
    for number in (1, 2):
        inner.configure_train(number, encode({WEIGHTS: weights}), ConfigRecord(), cast(Grid, hospitals))
        if hasattr(inner, "current_arrays"):
            inner.current_arrays = {WEIGHTS: weights}
        weights = plain_round(inner, number, weights, hospitals.nodes)
    tolerance = 2e-4 if name == "FedAdam" else 1e-6  # FedAdam divides each change by its size
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], weights, atol=tolerance)
    sites = [dict(zip(list(BUFFERS)[:2], moments(node), strict=True)) for node in hospitals.nodes]
    pooled = combine(sites, [PATIENTS[node] for node in hospitals.nodes])
    for buffer, expected in pooled.items():
        np.testing.assert_allclose(strategy.buffers[buffer], expected, atol=1e-6)
    assert strategy.buffers[BATCH_NORM + "num_batches_tracked"].tolist() == [2, 2]
    share = {node: PATIENTS[node] / sum(PATIENTS[n] for n in hospitals.nodes) for node in hospitals.nodes}
    expected_figure = sum(0.1 * node * share[node] for node in hospitals.nodes)
    for report in reports:
        assert not report.lost and report.valid == (1, 2, 3) and report.metrics == {}
        assert report.aggregated == pytest.approx(dict.fromkeys(FIGURES, expected_figure))
    assert read_address(folder / "server") is None


def test_round_with_a_missing_hospital_of_four(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, count=4, silent={1: {2}}), list[RoundReport]()
    strategy = strategy_of(hospitals, reports)
    run(strategy, hospitals, 1)
    expected = plain_round(FedAvg(), 1, MODEL[WEIGHTS], [1, 3, 4])
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], expected, atol=1e-6)
    assert reports[0].valid == (1, 3, 4)
    assert reports[0].refused == {2: "E_SITE_FAILED"}


def test_round_with_too_few_hospitals_is_lost_and_the_next_one_works(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, silent={1: {2}}), list[RoundReport]()
    strategy = strategy_of(hospitals, reports)
    hasten(strategy, 1)
    run(strategy, hospitals, 2)
    assert [report.lost_for for report in reports] == ["E_SECAGG_TOO_FEW", None]
    expected = plain_round(FedAvg(), 1, MODEL[WEIGHTS], [1, 2, 3])
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], expected, atol=1e-6)


def test_sum_that_a_killed_server_left_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hospitals have signed, and may have revealed shares: they train this model no more."""
    until_signed(monkeypatch)
    hospitals = Hospitals(folder, stop_before=dict.fromkeys(NAMES, "reveal"))
    strategy = strategy_of(hospitals, [], build_strategy("FedAdam", {}))
    strategy.masked.__dict__["last_seconds"] = 1.0
    with pytest.raises(Refusal, match="E_SECAGG_TOO_FEW"):
        run(strategy, hospitals, 1)
    hospitals.stop_before = {}
    reports: list[RoundReport] = []
    again = strategy_of(hospitals, reports, build_strategy("FedAdam", {}))
    with again.serving():
        threads = [
            threading.Thread(
                target=lambda node=node, known=known: [do() for _, do in hospitals.last_steps(node, *known)]
            )
            for node, known in hospitals.rounds.items()
        ]
        for thread in threads:
            thread.start()
        again.finish_begun(MODEL)
        for thread in threads:
            thread.join(60)
    inner = build_strategy("FedAdam", {})
    inner.configure_train(1, encode(MODEL), ConfigRecord(), cast(Grid, hospitals))
    expected = plain_round(inner, 1, MODEL[WEIGHTS], [1, 2, 3])
    np.testing.assert_allclose(again.arrays[WEIGHTS], expected, atol=2e-4)
    assert (again.first_round, reports[0].round, reports[0].lost) == (2, 1, False)
    later = strategy_of(hospitals, reports, first_round=2)
    later.finish_begun(again.arrays)
    assert len(reports) == 1, "there is nothing left to finish"


def test_callers_without_the_word_and_unknown_steps_are_refused(folder: Path) -> None:
    hospitals = Hospitals(folder)
    with strategy_of(hospitals, []).serving():
        server = folder / "server"
        assert post(server, "north", "begin", b"{}", "", word="x" * 64)[0] == 403
        assert post(server, "north", "else", b"{}", "")[0] == 403
        assert post(server, "north", "begin", b"{}", "")[0] == 204  # no round yet
        assert post(server, "north", "advertise", b"x" * 200_000, "")[0] == 413


# --- the vote ---------------------------------------------------------------------------------------------


def shrunk(weights: NDArray, times: int = 1) -> NDArray:
    """The weights after the study went back to them; the first three are never trained."""
    return np.concatenate([weights[:3], (weights[3:] * SHRINK**times).astype(np.float32)])


def plain_weights(rounds: int, nodes: list[int]) -> NDArray:
    weights, inner = MODEL[WEIGHTS], FedAvg()
    for number in range(1, rounds + 1):
        weights = plain_round(inner, number, weights, nodes)
    return weights


def test_model_that_most_hospitals_find_worse_is_taken_back(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, answers={3: {1: WORSE, 2: WORSE}}), list[RoundReport]()
    strategy = strategy_of(hospitals, reports, max_lost=5)
    run(strategy, hospitals, 4)
    assert [report.lost_for for report in reports] == [None, None, "E_MODEL_REJECTED", None]
    assert [report.undone for report in reports] == [(), (), (2,), ()]
    assert [report.unjudged for report in reports] == [(1,), (2,), (), (4,)]
    assert reports[2].votes == {"worse": 2, "not_worse": 1, "no_vote": 0}
    assert reports[2].aggregated == {} and reports[2].valid == (1, 2, 3)
    np.testing.assert_allclose(hospitals.seen[2], plain_weights(1, [1, 2, 3]), atol=1e-6)
    np.testing.assert_array_equal(hospitals.seen[4], shrunk(hospitals.seen[2]))
    assert len(hospitals.models) == 4, "no sum was revealed twice"
    assert hospitals.problems == []


def test_the_last_step_is_not_released_because_nobody_judged_it(folder: Path) -> None:
    hospitals = Hospitals(folder)
    strategy = strategy_of(hospitals, [])
    run(strategy, hospitals, 3)
    accepted = Accepted.read(strategy.accepted)
    assert accepted is not None and accepted.unjudged == (3,)
    np.testing.assert_array_equal(accepted.arrays[WEIGHTS], hospitals.seen[3])
    assert not np.array_equal(strategy.arrays[WEIGHTS], hospitals.seen[3])


@pytest.mark.parametrize(
    "answers", [{1: WORSE}, {1: WORSE, 2: NO_VOTE}, {1: NO_VOTE, 2: NO_VOTE, 3: NO_VOTE}], ids=["one", "half", "nobody"]
)
def test_hostile_minority_cannot_take_an_honest_round_back(folder: Path, answers: Mapping[int, Answer]) -> None:
    hospitals, reports = Hospitals(folder, answers={2: answers}), list[RoundReport]()
    run(strategy_of(hospitals, reports), hospitals, 2)
    assert [report.lost for report in reports] == [False, False]
    assert reports[1].votes["worse"] == sum(answer == WORSE for answer in answers.values())


def patch(settings_words: int, at: int, values: Mapping[int, int]) -> NDArray[np.uint32]:
    words = np.zeros(settings_words, np.uint32)
    for place, value in values.items():
        words[at + place] = value % 2**32
    return words


def vote_words() -> tuple[int, int]:
    """The length of the vector, and where the ballots begin."""
    settings = Settings(weights=300, channels=4, figures=FIGURES, patients=200, longest=1.0, sites=3)
    return settings.words, WIDE_WORDS * settings.wide


@pytest.mark.parametrize("values", [{0: 1, 1: 1}, {5: -1, SLOTS + 5: 1}], ids=["three ballots", "another's ballot"])
def test_hospital_with_a_changed_gateway_has_no_second_vote(folder: Path, values: Mapping[int, int]) -> None:
    """It can lose the round, as with noise. The model stays, and nothing of the round counts."""
    hospitals = Hospitals(folder, patched={2: (3, patch(*vote_words(), values))})
    reports: list[RoundReport] = []
    run(strategy_of(hospitals, reports), hospitals, 3)
    assert [report.lost_for for report in reports] == [None, "E_SECAGG_VOTES", None]
    assert reports[1].votes == {}
    np.testing.assert_array_equal(hospitals.seen[3], shrunk(hospitals.seen[2]))


def test_mean_that_is_longer_than_any_update_may_be_is_discarded(folder: Path) -> None:
    words, _ = vote_words()
    long = np.zeros(words, np.uint32)
    long[-300:] = 2**28
    hospitals, reports = Hospitals(folder, patched={1: (3, long)}), list[RoundReport]()
    run(strategy_of(hospitals, reports), hospitals, 2)
    assert [report.lost_for for report in reports] == ["E_SECAGG_LONG", None]
    np.testing.assert_array_equal(hospitals.seen[2], shrunk(MODEL[WEIGHTS]))


def test_sum_that_is_noise_loses_the_round_and_not_the_study(folder: Path) -> None:
    words, _ = vote_words()
    noise = np.random.default_rng(1).integers(0, 2**32, words, dtype=np.uint32)
    hospitals, reports = Hospitals(folder, patched={1: (3, noise)}), list[RoundReport]()
    run(strategy_of(hospitals, reports), hospitals, 2)
    assert [report.lost for report in reports] == [True, False]
    assert len(hospitals.models) == 2


def test_memory_of_the_optimiser_goes_back_too(folder: Path) -> None:
    hospitals, memories = Hospitals(folder, answers={3: ALL_WORSE}), list[dict[str, NDArray]]()
    counters: list[int] = []
    inner = build_strategy("FedAdam", {})
    strategy = strategy_of(hospitals, [], inner, max_lost=5)

    def remember(report: RoundReport) -> None:
        memories.append(strategy_state(inner))
        counters.append(int(strategy.buffers[BATCH_NORM + "num_batches_tracked"][0]))

    strategy.on_round = remember
    run(strategy, hospitals, 3)
    assert counters == [1, 2, 2], "gateways refuse a counter that goes down"
    after_first, after_second, after_going_back = memories
    assert after_going_back.keys() == after_first.keys()
    for name, array in after_first.items():
        np.testing.assert_array_equal(after_going_back[name], array)
    assert any(not np.array_equal(after_second[name], array) for name, array in after_first.items())


def test_study_that_is_spoiled_again_and_again_ends(folder: Path) -> None:
    """Each rejected model costs two rounds: the one that made it, and the one that judged it."""
    answers = {number: ALL_WORSE for number in (2, 4, 6, 8)}
    hospitals, reports = Hospitals(folder, answers=answers), list[RoundReport]()
    with pytest.raises(Refusal, match="E_MODEL_REJECTED: 3 of 3 hospitals"):
        run(strategy_of(hospitals, reports), hospitals, 8)
    assert [report.lost for report in reports] == [False, True, False, True]


def test_single_spoiled_rounds_do_not_end_a_study(folder: Path) -> None:
    answers = {number: ALL_WORSE for number in (3, 6)}
    hospitals, reports = Hospitals(folder, answers=answers), list[RoundReport]()
    run(strategy_of(hospitals, reports), hospitals, 7)
    assert [report.round for report in reports if report.lost] == [3, 6]


def test_model_that_all_gateways_refuse_as_too_far_is_taken_back(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, far={3: {1, 2, 3}}), list[RoundReport]()
    run(strategy_of(hospitals, reports), hospitals, 4)
    assert [report.lost_for for report in reports] == [None, None, "E_MODEL_DRIFT", None]
    assert reports[2].undone == (2,)
    np.testing.assert_array_equal(hospitals.seen[4], shrunk(hospitals.seen[2]))


def test_minority_that_claims_that_a_model_is_too_far_takes_nothing_back(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, far={2: {3}}), list[RoundReport]()
    strategy = strategy_of(hospitals, reports)
    hasten(strategy, 2)
    run(strategy, hospitals, 3)
    assert [report.lost_for for report in reports] == [None, "E_SECAGG_TOO_FEW", None]
    assert reports[1].undone == ()


def test_resumed_study_goes_back_to_the_model_that_was_accepted_before(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, answers={3: ALL_WORSE}), list[RoundReport]()
    first = strategy_of(hospitals, reports)
    run(first, hospitals, 2)
    later = strategy_of(hospitals, reports, first_round=3, accepted=first.accepted)
    later.buffers = first.buffers
    with later.serving():
        later.start(grid=cast(Grid, hospitals), initial_arrays=encode(first.arrays), num_rounds=2, timeout=60)
        for thread in hospitals.threads:
            thread.join(60)
    assert [report.undone for report in reports] == [(), (), (2,), ()]
    np.testing.assert_array_equal(hospitals.seen[4], shrunk(hospitals.seen[2]))


def test_epsilon_of_each_hospital_travels_beside_the_sum(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, epsilon=0.75), list[RoundReport]()
    run(strategy_of(hospitals, reports, is_private=True), hospitals, 2)
    assert [report.metrics for report in reports] == [
        {node: {"epsilon": 0.75} for node in (1, 2, 3)},
        {node: {"epsilon": 1.5} for node in (1, 2, 3)},
    ]


def test_epsilon_in_a_study_that_is_not_private_is_refused(folder: Path) -> None:
    hospitals, reports = Hospitals(folder, epsilon=0.75), list[RoundReport]()
    with pytest.raises(Refusal, match="E_SECAGG_TOO_FEW"):
        run(strategy_of(hospitals, reports, max_lost=0), hospitals, 1)
    assert set(reports[0].refused.values()) == {"E_REPLY_RECORDS"}
