"""The gateway's log, which the node reads: a message is a line, whatever it quotes."""

import logging

from federation.gateway.__main__ import OneLine


def test_what_a_message_quotes_begins_no_line() -> None:
    hostile = "\n2026-11-27 10:00:00,000 WARNING refused in: E_SANDBOX\r\x1b[2J\u202e\u2028ok é"
    record = logging.LogRecord("gateway", logging.WARNING, "", 0, "refused out: %s", (hostile,), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line == (
        "WARNING refused out: \\n2026-11-27 10:00:00,000 WARNING refused in: E_SANDBOX\\r\\x1b[2J\\u202e\\u2028ok é"
    )
    assert len(line.splitlines()) == 1
