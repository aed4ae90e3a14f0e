"""Which versions work together, and who must upgrade."""

from importlib.metadata import version

import pytest

from federation.protocol.versions import OLDEST_NODE, series, who_must_upgrade


@pytest.mark.parametrize(
    ("node", "server", "code"),
    [
        ("0.4.0", "0.4.7", None),
        ("0.4.7", "0.4.0", None),  # corrections differ in either direction
        ("0.3.9", "0.4.0", None),
        ("0.2.9", "0.4.0", "E_SITE_OUTDATED"),
        ("0.5.0", "0.4.9", "E_SERVER_OUTDATED"),
        ("1.0.0", "0.4.9", "E_SERVER_OUTDATED"),
        ("0.10.0", "0.4.0", "E_SERVER_OUTDATED"),  # numbers, not text
        ("0.4.0rc1", "0.4.0", None),
        ("", "0.4.0", "E_SITE_OUTDATED"),
        ("latest", "0.4.0", "E_SITE_OUTDATED"),
        ("99999999999999999999.0", "0.4.0", "E_SITE_OUTDATED"),
        ("0.99999999999999999999", "0.4.0", "E_SITE_OUTDATED"),
    ],
)
def test_server_accepts_its_series_and_older_ones_from_the_oldest_on(node: str, server: str, code: str | None) -> None:
    reason = who_must_upgrade(node, server, oldest="0.3")
    assert (reason.code if reason else None) == code


def test_this_release_accepts_itself_and_is_not_older_than_what_it_accepts() -> None:
    own = version("fedthorax")
    assert who_must_upgrade(own, own) is None
    assert series(OLDEST_NODE) <= series(own)
