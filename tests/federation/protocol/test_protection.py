"""The default protection is that of the table in docs/choosing-protection.md."""

import re
from pathlib import Path

import pytest

from federation.protocol.protection import fitting_quorum, recommended
from federation.protocol.study_config import LEAST_SECURE_SITES
from federation.secure_aggregation.roster import MAX_PEERS, threshold_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "choosing-protection.md"
ROW = re.compile(r"^\| (\d+)(?: (to|or) (\d+|more))? \| (.+?) \|", re.M)


def rows() -> list[tuple[int, int, str]]:
    """Return the rows of the page's table: least and largest number of hospitals, and the default."""
    table = PAGE.read_text().partition("## Recommended default")[2]
    return [
        (int(least), MAX_PEERS if most == "more" else int(most or least), default)
        for least, _, most, default in ROW.findall(table)
    ]


def test_page_has_a_row_for_each_number_of_hospitals() -> None:
    assert [sites for least, most, _ in rows() for sites in range(least, most + 1)] == list(range(3, MAX_PEERS + 1))


@pytest.mark.parametrize(("least", "most", "default"), rows())
def test_default_is_the_one_of_the_page(least: int, most: int, default: str) -> None:
    for sites in range(least, most + 1):
        chosen = recommended(sites)
        groups = re.search(r"`groups = (\d)`", default)
        assert chosen.secure == ("CenteredClip" not in default)
        assert chosen.groups == (int(groups[1]) if groups else 0)
        assert chosen.groups == 0 or sites // chosen.groups >= 4, "a group of four outlasts the loss of one hospital"


@pytest.mark.parametrize("sites", range(1, 40))
def test_quorum_is_more_than_two_thirds(sites: int) -> None:
    plain, masked = fitting_quorum(sites, secure=False), fitting_quorum(sites, secure=True)
    assert masked == threshold_of(sites) <= sites
    assert plain == (2 if sites == LEAST_SECURE_SITES else masked), "without masks, one of three may be missing"
