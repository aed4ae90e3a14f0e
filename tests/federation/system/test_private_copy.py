"""Settings and secrets of a mounted folder become files that only their owner may read."""

import stat
from pathlib import Path

import pytest

from federation.system.private_copy import copy_private, main


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_files_of_a_mounted_secret_are_copied_privately(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"  # as Kubernetes lays it out
    (mounted / "..2026_11_28").mkdir(parents=True)
    (mounted / "..2026_11_28" / "pacs-password").write_text("open sesame")
    (mounted / "..data").symlink_to("..2026_11_28")
    (mounted / "pacs-password").symlink_to("..data/pacs-password")
    target = tmp_path / "private"
    copy_private(mounted, target)
    copy_private(mounted, target)  # at the next start
    assert modes(target) == {"pacs-password": 0o600}
    assert (target / "pacs-password").read_text() == "open sesame"
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_pairs_of_files_are_copied_over_older_ones(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "site.toml").write_text("old")
    (tmp_path / "site.toml").chmod(0o644)
    main([str(tmp_path / "new"), str(tmp_path / "site.toml")])
    assert (tmp_path / "site.toml").read_text() == "new"
    assert modes(tmp_path)["site.toml"] == 0o600


def test_copy_does_not_follow_a_link_that_somebody_left(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "elsewhere").write_text("untouched")
    (tmp_path / ".site.toml.new").symlink_to("elsewhere")
    main([str(tmp_path / "new"), str(tmp_path / "site.toml")])
    assert (tmp_path / "elsewhere").read_text() == "untouched"


def test_odd_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        main([str(tmp_path)])
