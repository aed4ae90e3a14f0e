"""A replayed reply does not change the model.

Mutual TLS between site and server prevents third parties from replaying recorded messages. The site itself can still
send a reply twice, or send an old reply under a new message id.
"""

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.state.schema.linkstate_models import MessageRes
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from federation.coordinator.eager_grid import EagerGrid
from federation.protocol.metric_allowlist import Figure
from federation.protocol.reply_validation import encode
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import GuardedStrategy, RoundRules
from tests.helpers.fake_grid import FakeGrid, honest, honest_answer


def test_server_database_keeps_one_reply_per_message(tmp_path):
    """The tests rely on this rule of Flower: a second reply to a message adds no row, whatever its id."""
    engine = create_engine(f"sqlite:///{tmp_path / 'state.db'}")
    MessageRes.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(MessageRes(message_id="a", reply_to_message_id="task", content=b"first"))
        session.commit()
        for again in ("a", "b"):
            session.add(MessageRes(message_id=again, reply_to_message_id="task", content=b"again"))
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
            session.expunge_all()
        assert session.scalar(select(func.count()).select_from(MessageRes)) == 1
        assert session.scalar(select(MessageRes.content)) == b"first"


class Repeating(FakeGrid):
    """With `repeats`, each pull returns every reply again, together with those of earlier rounds."""

    def __init__(self, *, repeats: bool) -> None:
        super().__init__({number: honest(number) for number in (1, 2, 3)})
        self.repeats = repeats
        self.came: list[Message] = []
        self.looks = 0

    def push_messages(self, messages):
        new = list(self.send_and_receive(messages))
        for reply in new:  # messages in memory have no id
            reply.metadata.__dict__["_reply_to_message_id"] = f"{len(self.sent)} {reply.metadata.src_node_id}"
        self.came += new
        return [reply.metadata.reply_to_message_id for reply in new]

    def pull_messages(self, message_ids):
        """As Flower's grid: only replies to these messages. Every second pull returns one at most."""
        self.looks += 1
        found = [reply for reply in self.came if reply.metadata.reply_to_message_id in set(message_ids)]
        found = found if self.looks % 2 else found[:1]
        if not self.repeats:
            self.came = [reply for reply in self.came if not any(reply is each for each in found)]
        return found


def test_repeated_replies_do_not_change_the_model(monkeypatch):
    monkeypatch.setattr("federation.coordinator.eager_grid.POLL_S", 0.0)

    def after(repeats: bool) -> dict[str, np.ndarray]:
        rules = RoundRules(quorum=3, metrics={"loss": Figure(0, 1, "train")}, max_examples=1000)
        guard = GuardedStrategy(build_strategy("FedAvg", {}), rules)
        grid = Repeating(repeats=repeats)
        guard.start(EagerGrid(grid), encode({"w": np.zeros(5, np.float32)}), num_rounds=3)
        assert guard.aggregated_rounds == 3
        return guard.arrays

    np.testing.assert_array_equal(after(repeats=True)["w"], after(repeats=False)["w"])


def test_site_that_replies_twice_in_a_round_is_excluded_from_the_round():
    reports = []
    rules = RoundRules(quorum=2, metrics={"loss": Figure(0, 1, "train")}, max_examples=1000)
    guard = GuardedStrategy(build_strategy("FedAvg", {}), rules, on_round=reports.append)
    grid = FakeGrid({1: honest(1), 2: honest(2), 3: lambda message: [honest_answer(3, message)] * 2})
    guard.start(grid, encode({"w": np.zeros(5, np.float32)}), num_rounds=1)
    assert reports[0].refused == {3: "E_REPLY_TWICE"}
