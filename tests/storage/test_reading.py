"""Listing folders."""

from __future__ import annotations

from pathlib import Path

from bpr_service.storage import list_files


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "1.png").touch()
    (inner / "back").symlink_to(tmp_path)
    (inner / "itself").symlink_to(inner)
    (tmp_path / "aside").symlink_to(inner)
    assert list_files(str(tmp_path), (".png",)) == ["a/b/1.png", "aside/1.png"]
