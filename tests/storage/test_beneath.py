"""Files beneath folders: links out of them lead nowhere, also those that are put there between the look and the use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bpr_service import storage
from bpr_service.errors import BprError, ForbiddenError
from bpr_service.masks.images import read_image
from bpr_service.masks.label_maps import write_label_map
from bpr_service.storage import beneath
from bpr_service.storage.beneath import Folders, within
from refiner_training.data.coco import read_json
from refiner_training.data.label_pngs import png_size


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with an inner one and a file, beside a secret."""
    (tmp_path / "root" / "inner").mkdir(parents=True)
    (tmp_path / "root" / "inner" / "file").write_bytes(b"ours")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"theirs")
    return tmp_path / "root"


@pytest.fixture(params=["openat2", "by parts"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open beneath a folder."""
    if request.param == "by parts":
        monkeypatch.setattr(beneath, "_openat2", lambda *_: None)
    return str(request.param)


def test_what_lies_inside_is_read_by_any_name(root: Path, way: str) -> None:
    (root / "link").symlink_to("inner")
    (root / "whole").symlink_to(root / "inner" / "file")
    (root.parent / "other").symlink_to(root)
    with within(Folders.of((str(root.parent / "other"),))):
        for name in ("inner/file", "link/file", "whole", "inner/../inner/file"):
            assert storage.read_bytes(str(root / name)) == b"ours"
    assert storage.read_bytes(str(root.parent / "secret" / "file")) == b"theirs", "nobody is confined here"


@pytest.mark.parametrize("name", ["../secret/file", "out/file", "up/secret/file", "/etc/hostname", "direct"])
def test_what_lies_outside_is_not(name: str, root: Path, way: str) -> None:
    (root / "out").symlink_to(root.parent / "secret")
    (root / "up").symlink_to("..")
    (root / "direct").symlink_to(root.parent / "secret" / "file")
    with within(Folders.of((str(root),))), pytest.raises(ForbiddenError):
        storage.read_bytes(os.path.join(root, name))


def swapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a link to the secret in the place of ``inner`` once its path has been resolved."""
    place = Folders._place

    def late(self: Folders, path: str, *, writes: bool) -> tuple[str, str]:
        found = place(self, path, writes=writes)
        (root / "inner").rename(root / "moved")
        (root / "inner").symlink_to(root.parent / "secret")
        return found

    monkeypatch.setattr(Folders, "_place", late)


def test_a_link_that_is_put_there_meanwhile_is_not_read(root: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(root, monkeypatch)
    with within(Folders.of((str(root),))), pytest.raises((OSError, BprError)):
        storage.read_bytes(str(root / "inner" / "file"))


def test_nor_written_through(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped(root, monkeypatch)
    with within(Folders.of((), (str(root),))), pytest.raises(OSError):
        storage.write_bytes(str(root / "inner" / "new"), b"x")
    assert sorted(path.name for path in (root.parent / "secret").iterdir()) == ["file"]


def test_writing_makes_folders_and_replaces_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "inner" / "link").symlink_to(root.parent / "secret" / "file")
    with within(Folders.of((), (str(root),))):
        storage.write_bytes(str(root / "a" / "b" / "new"), b"new")
        with pytest.raises(ForbiddenError):
            storage.write_bytes(str(root / ".." / "secret" / "new"), b"x")
        monkeypatch.chdir(root)
        storage.write_bytes("here", b"here")
    assert (root / "a" / "b" / "new").read_bytes() == b"new"
    assert (root / "here").read_bytes() == b"here"
    storage.write_bytes(str(root / "inner" / "link"), b"mine")
    assert (root.parent / "secret" / "file").read_bytes() == b"theirs", "a link is replaced, not followed"


def test_what_may_be_read_may_not_be_written(root: Path) -> None:
    (root / "public").symlink_to(root.parent / "secret")
    with within(Folders.of((str(root.parent / "secret"),), (str(root),))):
        assert storage.read_bytes(str(root / "public" / "file")) == b"theirs"
        with pytest.raises(ForbiddenError):
            storage.write_bytes(str(root / "public" / "file"), b"x")


def test_lists_do_not_leave(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "secret")
    with within(Folders.of((str(root),))):
        assert storage.list_files(str(root), ("file",)) == ["inner/file"]
    assert storage.list_files(str(root), ("file",)) == ["inner/file", "out/file"]


@pytest.mark.parametrize("read", [read_image, read_json, png_size, storage.sha256, storage.size_bytes])
def test_every_reader_asks(read: Callable[[str], object], root: Path) -> None:
    write_label_map(root.parent / "secret" / "1.png", [[1]])  # type: ignore[arg-type]
    (root / "1.png").symlink_to(root.parent / "secret" / "1.png")
    with within(Folders.of((str(root),))), pytest.raises(ForbiddenError):
        read(str(root / "1.png"))


def test_what_a_process_starts_is_confined_with_it(root: Path) -> None:
    script = (
        "import subprocess, sys; from bpr_service.storage.beneath import Folders, confine\n"
        "confine(Folders.of((sys.argv[1],)))\n"
        "code = 'import sys; from bpr_service import storage; print(storage.read_bytes(sys.argv[1]))'\n"
        "for name in sys.argv[2:]:\n"
        "    subprocess.run([sys.executable, '-c', code, name])\n"
    )
    names = [str(root / "inner" / "file"), str(root.parent / "secret" / "file")]
    done = subprocess.run([sys.executable, "-c", script, str(root), *names], capture_output=True, text=True)
    assert done.stdout == "b'ours'\n"
    assert "ForbiddenError" in done.stderr


def test_a_data_set_s_names_stay_in_its_folder(root: Path) -> None:
    from bpr_service.errors import FormatError
    from refiner_training.data.instance_readers import CocoPairs
    from refiner_training.data.panoptic import PanopticFile

    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "iscrowd": 0}
    for name in ("/etc/hostname", "../secret/file", "a::file:///etc/hostname"):
        data = {"images": [{"id": 1, "file_name": name, "height": 9, "width": 9}], "annotations": [annotation],
                "categories": [{"id": 1, "name": "a"}]}  # fmt: skip
        (root / "ann.json").write_text(json.dumps(data))
        with pytest.raises(FormatError, match="leaves its folder"):
            CocoPairs(root, root / "ann.json")
        with pytest.raises(FormatError, match="leaves its folder"):
            PanopticFile(root, root, {}, {1: {"file_name": name}}, {}).png(1)
