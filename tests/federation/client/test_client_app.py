"""What a site's app says of its work: to the server a code, to the site's own log the rest."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federation.client.client_app import coded
from models.refusal import Refusal
from pipeline.site.reasons import SITE_KEY

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
MESSAGE = Message(RecordDict(), dst_node_id=1, message_type="train")
CONTEXT = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The log of a site whose folder the app is told."""
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("FEDTHORAX_SITE_DIR", str(tmp_path))
    forget()  # the app may have worked for another site in this process
    yield tmp_path / "logs" / "client.log"
    forget()


def forget() -> None:
    """As in a new process."""
    site_log = logging.getLogger("fedthorax.site")
    for handler in list(site_log.handlers):
        handler.close()
        site_log.removeHandler(handler)
    site_log.propagate = True


def refuse(message: Message, context: Context) -> Message:
    raise Refusal(SITE_KEY, private="/data/MUELLER^HANS")


def fail(message: Message, context: Context) -> Message:
    raise ValueError("cannot read /data/MUELLER^HANS")


@pytest.mark.parametrize(("handler", "code"), [(refuse, "E_SITE_KEY"), (fail, "E_SITE_FAILED")])
def test_the_server_gets_the_code_and_the_log_the_text(
    log: Path, handler: Callable[[Message, Context], Message], code: str
) -> None:
    reply = coded(handler)(MESSAGE, CONTEXT)
    assert reply.error.reason == code
    assert "MUELLER" in log.read_text()


def test_a_log_that_cannot_be_written_changes_no_answer(log: Path) -> None:
    log.mkdir()
    assert coded(fail)(MESSAGE, CONTEXT).error.reason == "E_SITE_FAILED"
    assert coded(lambda message, _: message)(MESSAGE, CONTEXT) is MESSAGE


def test_the_log_has_the_last_word_on_a_task(log: Path) -> None:
    assert coded(lambda message, _: message)(MESSAGE, CONTEXT) is MESSAGE
    assert log.read_text().endswith("INFO done\n")
