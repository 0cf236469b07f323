"""Ray drives the same parts: a node that is lost costs nothing, and columns are refined as images are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bpr_service.errors import ConfigError, FormatError, NotReadyError
from bpr_service.jobs.ray.data import RefineBatch
from bpr_service.jobs.ray.driver import PartActor, connect, refine_on_ray
from bpr_service.jobs.refine.batch import Batch, run_batch, settle_model
from bpr_service.jobs.refine.place import Place
from bpr_service.jobs.refine.plan import make_plan, open_file
from bpr_service.masks.mask import Mask
from bpr_service.network import devices
from bpr_service.refine.refiner import Refiner
from tests.jobs.ray_cluster import RayCluster
from tests.jobs.samples import SETTINGS, H, W, coco_set, disc, picture, tiny_model

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayCluster]:
    """Two nodes with room for one actor each."""
    try:
        cluster = RayCluster(tmp_path, nodes=2)
    except Exception as error:  # Ray gives a node 30 s, which a machine that does much else takes longer for
        pytest.skip(f"no cluster of Ray started here: {error}")
    yield cluster
    cluster.close()


def test_nodes_that_are_lost_lose_nothing(cluster: RayCluster, tmp_path: Path) -> None:
    request = coco_set(tmp_path / "set", 12).with_options(part_images=2)
    run_batch(request, Batch(workers=0))
    again = request.with_options(out=str(tmp_path / "again.json"))
    place = Place(str(tmp_path / "work"))
    assert len(cluster.refine(again, place, kills=2, seed=1)) == 2
    counts = cluster.refined()
    assert sorted(counts) == sorted(f"{i}.png" for i in range(12))
    assert max(counts.values()) <= 2
    assert run_batch(again, Batch(work=place.address, merge=True)).exit_code == 0
    assert Path(again.out).read_bytes() == Path(request.out).read_bytes()
    whole = again.with_options(out=str(tmp_path / "whole.json"))
    assert run_batch(whole, Batch(), drive=partial(refine_on_ray, actors=1)).images == 12
    assert Path(whole.out).read_bytes() == Path(request.out).read_bytes()
    with pytest.raises(ConfigError, match="is not the same place on all nodes"):
        refine_on_ray(again, Place(str(tmp_path / "elsewhere")), [0])


def test_a_ray_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReadyError, match=r"Ray at 127\.0\.0\.1:9: expected a cluster of Ray"):
        connect("127.0.0.1:9")

    def other_version(**_: object) -> None:
        from ray._private.utils import check_version_info

        check_version_info({"ray_version": "1.0.0", "python_version": "3.12.1"}, "this node")

    monkeypatch.setattr(ray, "init", other_version)  # which looks at the versions once it is connected
    with pytest.raises(NotReadyError, match=r"The cluster was started with: Ray: 1\.0\.0 Python: 3\.12\.1"):
        connect(None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="expected the extra 'ray'"):
        connect(None)


def test_an_actor_uses_the_processors_that_it_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, place = coco_set(tmp_path, 2), Place(str(tmp_path / "work"))
    model, sha256 = settle_model(request)
    make_plan(request, open_file(request), place, model=model, model_sha256=sha256)
    asked = list[int]()
    monkeypatch.setattr(devices, "set_threads", asked.append)
    actor = PartActor(request.model_dump(mode="json"), place.address, "cpu", workers=3)
    assert actor.ready()
    assert asked == [4]
    actor.pool.close()


def batch_of(images: int) -> dict[str, Any]:
    """Columns as Arrow gives them: RLE of one image, none of another, a file that is no image."""
    rles = [Mask.from_array(disc(30 + i, 40, 14)).to_rle() for i in range(2)]
    images_column, masks = np.empty(images, object), np.empty(images, object)
    for i in range(images):
        images_column[i], masks[i] = picture(i), rles
    return {"image": images_column, "masks": masks, "key": np.arange(images)}


def test_columns_are_refined_as_images_are(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    refine, refiner = RefineBatch(model=model, **SETTINGS), Refiner.load("balanced", model=model, **SETTINGS)
    batch = batch_of(3)
    Image.fromarray(picture(1)).save(tmp_path / "1.png")
    batch["image"][1] = (tmp_path / "1.png").read_bytes()
    batch["image"][2] = b"no image"
    out = refine(batch)
    assert list(out["key"]) == [0, 1, 2]
    for i in range(2):
        expected = refiner.refine(picture(i), batch["masks"][i])
        assert out["masks"][i] == [mask.to_rle() for mask in expected.masks]
        assert [status.split(":")[0] for status in out["status"][i]] == [r.status for r in expected.reports]
    assert out["masks"][2] is batch["masks"][2]
    assert out["status"][2][0].startswith("failed: ")
    stack = np.stack([disc(30 + i, 40, 14) for i in range(2)]).astype(bool)
    column = np.empty(1, object)
    column[0] = stack
    (arrays,) = refine({"image": batch["image"][:1], "masks": column})["masks"]
    assert (arrays.shape, arrays.dtype) == ((2, H, W), bool)
    assert np.array_equal(arrays, [m.to_array() for m in refiner.refine(picture(0), batch["masks"][0]).masks])
    with pytest.raises(FormatError, match="column 'masks': expected a batch that has it, got image"):
        refine({"image": column})
