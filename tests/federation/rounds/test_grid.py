"""The grid that looks for replies often, over a grid of lists."""

from types import SimpleNamespace

from federation.rounds.grid import EagerGrid


class Lists:
    """Hands out one waiting reply at each look."""

    def __init__(self, answered: int) -> None:
        self.answered = answered
        self.looks = 0

    def get_node_ids(self):
        return iter([1, 2, 3])

    def push_messages(self, messages):
        self.ids = [f"m{k}" for k, _ in enumerate(messages)]
        return self.ids

    def pull_messages(self, ids):
        self.looks += 1
        left = sorted(ids)
        if len(self.ids) - len(left) >= self.answered:
            return []
        return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=left[0]))]


def test_all_replies_are_collected_once(monkeypatch):
    monkeypatch.setattr("federation.rounds.grid.POLL_S", 0)
    grid = Lists(answered=3)
    assert len(EagerGrid(grid).send_and_receive(["a", "b", "c"], timeout=10)) == 3
    assert grid.looks == 3


def test_what_is_missing_is_waited_for_no_longer_than_the_timeout(monkeypatch):
    monkeypatch.setattr("federation.rounds.grid.POLL_S", 0.01)
    replies = EagerGrid(Lists(answered=2)).send_and_receive(["a", "b", "c"], timeout=0.1)
    assert len(replies) == 2
