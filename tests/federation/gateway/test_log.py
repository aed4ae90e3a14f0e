"""Each message in the gateway's log, which the node reads, is one line, also if it quotes hostile text."""

import logging

from federation.gateway.__main__ import OneLine


def test_quoted_text_cannot_start_a_new_log_line() -> None:
    hostile = "\n2026-11-27 10:00:00,000 WARNING refused in: E_SANDBOX\r\x1b[2J\u202e\u2028ok é"
    record = logging.LogRecord("gateway", logging.WARNING, "", 0, "refused out: %s", (hostile,), None)
    line = OneLine("%(levelname)s %(message)s").format(record)
    assert line == (
        "WARNING refused out: \\n2026-11-27 10:00:00,000 WARNING refused in: E_SANDBOX\\r\\x1b[2J\\u202e\\u2028ok é"
    )
    assert len(line.splitlines()) == 1
