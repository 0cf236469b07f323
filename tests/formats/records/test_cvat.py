"""What CVAT's files say beside what every format's contract asks."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from bpr_service.errors import FormatError
from bpr_service.formats import FileOptions, Paths, open_predictions
from bpr_service.masks.mask import Mask
from tests.formats.drawing import disc, image, ring
from tests.formats.samples import sample, write_all

KIND = ("instance", "cvat")


def opened(root: Path, text: str | bytes) -> Any:
    image(root / "images" / "a.jpg")
    (root / "a.xml").write_bytes(text.encode() if isinstance(text, str) else text)
    return open_predictions(*KIND, Paths(str(root / "images"), str(root / "a.xml")))


def one(shape: str) -> str:
    return f'<annotations><image id="0" name="a.jpg" width="52" height="40">{shape}</image></annotations>'


def test_only_the_changed_shape_differs(tmp_path: Path) -> None:
    file = sample(KIND, tmp_path)
    old = Path(file.paths.predictions).read_text()
    new_mask = Mask.from_array(disc(20, 20))
    write_all(file, tmp_path / "out.xml", lambda unit, read: read.with_masks([new_mask] * len(read.masks)))
    new = (tmp_path / "out.xml").read_text()
    lines = list(zip(old.splitlines(), new.splitlines(), strict=True))
    differ = [(a, b) for a, b in lines if a != b]
    assert [a.split("=")[0].strip() for a, _ in differ] == ["rle", "<polygon label"]
    assert all(a.endswith(b[b.rindex(" z_order") :]) for a, b in differ)
    assert ElementTree.fromstring(new).find(".//mask").get("label") == "c<t"


def test_a_polygon_that_gets_a_hole_becomes_a_mask(tmp_path: Path) -> None:
    file = opened(tmp_path, one('<polygon label="é" points="1,1;9,1;9,9" z_order="4"><attribute name="x"/></polygon >'))
    unit = next(iter(file.scan()))
    read = file.read(unit)
    encoded = file.encode(unit, read.with_masks([Mask.from_array(ring(3, 2))])).records[0].decode()
    element = ElementTree.fromstring(encoded)[0]
    assert (element.tag, element.get("label"), element.get("z_order"), element[0].get("name")) == (
        "mask",
        "é",
        "4",
        "x",
    )
    assert "points" not in element.attrib
    again = opened(tmp_path, f"<annotations>{encoded}</annotations>")
    np.testing.assert_array_equal(again.read(next(iter(again.scan()))).masks[0].to_array(), ring(3, 2))


def test_masks_can_be_written_as_polygons(tmp_path: Path) -> None:
    paths = sample(KIND, tmp_path).paths
    wanted = Paths(paths.images, paths.predictions, options=FileOptions(encoding="polygon"))
    write_all(open_predictions(*KIND, wanted), tmp_path / "out.xml", lambda unit, read: read)
    assert "<mask" not in (tmp_path / "out.xml").read_text()
    again = open_predictions(*KIND, Paths(paths.images, str(tmp_path / "out.xml")))
    masks: Any = again.read(next(iter(again.scan())))
    np.testing.assert_array_equal(masks.masks[0].to_array(), ring(3, 2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "document type"),
        ('<?xml version="1.0" encoding="latin-1"?><annotations/>', "latin-1"),
        (one("").encode("utf-16"), "UTF-16"),
        ("<annotations><track/></annotations>", "CVAT for video"),
        ("<annotations/>", "no <image>"),
        (one("")[:-5], "broken XML at byte"),
        ("[]", "broken XML"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        list(opened(tmp_path, text).scan())


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ('<polygon points="1,1;2"/>', "x,y;x,y"),
        ('<polygon points="nan,1;2,2;3,3"/>', "finite"),
        ("<polygon/>", "x,y;x,y"),
        ('<mask rle="4" left="0" top="0" width="2" height="3"/>', "runs of 6 px"),
        ('<mask rle="9,-3" left="0" top="0" width="2" height="3"/>', "runs of 6 px"),
        ('<mask rle="6" left="51" top="0" width="2" height="3"/>', "leaves the image"),
        ('<mask rle="x" left="0" top="0" width="2" height="3"/>', "rle, left"),
    ],
)
def test_a_broken_shape_is_named_and_its_good_siblings_are_read(tmp_path: Path, shape: str, says: str) -> None:
    file = opened(tmp_path, one(shape + '<polygon points="1,1;9,1;9,9;1,9"/>'))
    first, second = file.read(next(iter(file.scan()))).instances
    assert says in first.problem
    assert second.mask.area == 64


def test_a_long_file_is_scanned_in_bounded_memory(tmp_path: Path) -> None:
    """8 MB of images; a document tree of it would take several times that."""
    shape = '<polygon label="a" points="' + ";".join("1.00,2.00" for _ in range(400)) + '"/>'
    frame = f'<image id="0" name="a.jpg" width="52" height="40">{shape}</image>\n'
    file = opened(tmp_path, "<annotations>" + frame * 2000 + "</annotations>")
    tracemalloc.start()
    count = sum(1 for _ in file.scan())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 4 << 20
