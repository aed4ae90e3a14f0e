"""Error reporting of the ClientApp: the server receives only a code, and the site log contains the details."""

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
    """The log file in the site folder that the app is given."""
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("FEDTHORAX_SITE_DIR", str(tmp_path))
    forget()  # another test may have opened the log of another site in this process
    yield tmp_path / "logs" / "client.log"
    forget()


def forget() -> None:
    """Reset the site logger, as in a new process."""
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
def test_error_reply_has_only_the_code_and_the_site_log_has_the_text(
    log: Path, handler: Callable[[Message, Context], Message], code: str
) -> None:
    reply = coded(handler)(MESSAGE, CONTEXT)
    assert reply.error.reason == code
    assert "MUELLER" in log.read_text()


def test_reply_is_unchanged_if_the_log_cannot_be_written(log: Path) -> None:
    log.mkdir()
    assert coded(fail)(MESSAGE, CONTEXT).error.reason == "E_SITE_FAILED"
    assert coded(lambda message, _: message)(MESSAGE, CONTEXT) is MESSAGE


def test_log_ends_with_done_after_a_task(log: Path) -> None:
    assert coded(lambda message, _: message)(MESSAGE, CONTEXT) is MESSAGE
    assert log.read_text().endswith("INFO done\n")
