"""`Refiner`: any image, any mask, stage by stage or at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bpr_service.config import PatchConfig, RefineConfig
from bpr_service.errors import (
    ConfigError,
    ConflictError,
    DeviceError,
    ImageError,
    LimitError,
    MaskError,
    ModelError,
    UnknownName,
)
from bpr_service.masks.images import as_image
from bpr_service.masks.mask import Mask
from bpr_service.network.model import Model
from bpr_service.network.registry import build_network
from bpr_service.network.weights import ModelCard, NetworkCard, save_model
from bpr_service.refine.patches import place_patches
from bpr_service.refine.refiner import Refiner
from tests.scenes import Keep, Paint, blob, edge_cases, photo, refiner


@pytest.mark.parametrize("scheme", ["dense", "sparse", "grid"])
@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_a_network_that_changes_nothing_changes_nothing(name: str, scheme: str) -> None:
    frame = edge_cases()[name]
    result = refiner(Keep(), scheme=scheme).refine(photo(*frame.shape), [frame])
    np.testing.assert_array_equal(result.masks[0].to_array(), frame)
    assert result.reports[0].status == "unchanged"
    assert result.reports[0].reason


@pytest.mark.parametrize("name", sorted(edge_cases()))
def test_what_lies_under_a_patch_is_refined_and_the_rest_is_kept(name: str) -> None:
    frame = edge_cases()[name]
    height, width = frame.shape
    image = np.repeat(blob(height, width, seed=9)[:, :, None] * np.uint8(255), 3, axis=2)
    engine = refiner(Paint())
    result = engine.refine(image, [frame])
    want = frame.copy()
    for x0, y0, x1, y1 in place_patches(Mask.from_array(frame), engine.config.patch):
        want[y0:y1, x0:x1] = image[y0:y1, x0:x1, 0] > 127
    np.testing.assert_array_equal(result.masks[0].to_array(), want)
    report = result.reports[0]
    assert report.changed_px == (want != frame).sum()
    assert report.added_px == ((want == 1) & (frame == 0)).sum()
    assert report.status == ("refined" if report.changed_px else "unchanged")


@pytest.mark.parametrize(
    "image",
    [
        photo(90, 80)[:, :, 0],
        np.dstack([photo(90, 80), photo(90, 80)[:, :, 0]]),
        photo(90, 80).astype(np.uint16) * 257,
        photo(90, 80) / 255.0,
    ],
)
def test_kinds_of_image(image: Any) -> None:
    frame = blob(90, 80)
    a = refiner(Paint()).refine(image, [frame]).masks[0].to_array()
    np.testing.assert_array_equal(a, refiner(Paint()).refine(as_image(image), [frame]).masks[0].to_array())


def test_masks_overlap_keep_their_order_and_stay_independent() -> None:
    image = photo(120, 120)
    frames = [blob(120, 120, i) for i in range(4)]
    together = refiner(Paint()).refine(image, frames)
    for frame, mask, report in zip(frames, together.masks, together.reports, strict=True):
        alone = refiner(Paint()).refine(image, frame).masks[0]
        np.testing.assert_array_equal(mask.to_array(), alone.to_array())
        assert together.reports[report.index] is report
    stacked = refiner(Paint()).refine(image, np.stack(frames))
    assert [m.to_rle() for m in stacked.masks] == [m.to_rle() for m in together.masks]
    assert refiner().refine(image, []).masks == []


def test_soft_masks_go_in_and_a_mask_that_stays_keeps_its_probabilities() -> None:
    soft = np.zeros((100, 100), np.float32)
    soft[30:60, 30:60] = np.linspace(0, 1, 30, dtype=np.float32)
    result = refiner(Keep()).refine(photo(100, 100), [soft])
    np.testing.assert_array_equal(result.masks[0].to_array(), soft >= 0.5)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_stages_by_hand_equal_refine(batch_size: int) -> None:
    engine = refiner(Paint(2), outputs=2)
    image, frames = photo(200, 150), [blob(200, 150, i) for i in range(3)] + [np.zeros((200, 150), np.uint8)]
    prepared = engine.prepare(image, frames)
    chunks = [(s, prepared.crops(s, s + batch_size)) for s in range(0, prepared.n_patches, batch_size)]
    assert sum(len(c) for _, c in chunks) == prepared.n_patches
    for start, crops in reversed(chunks):  # answers may come back in any order
        prepared.add(start, engine.logits(crops))
    a, b = prepared.finish(), engine.refine(image, frames)
    assert [m.to_rle() for m in a.masks] == [m.to_rle() for m in b.masks]
    assert a.reports == b.reports
    assert set(b.timings_ms) == {"patches", "crops", "network", "reassembly"}
    assert (b.model, b.device) == ("test@1", "cpu")


def test_answers_are_checked() -> None:
    engine = refiner()
    prepared = engine.prepare(photo(100, 100), [blob(100, 100)])
    logits = engine.logits(prepared.crops(0, prepared.n_patches)).copy()
    with pytest.raises(ConflictError, match="not complete"):
        prepared.finish()
    with pytest.raises(ModelError, match=r"expected \(n, 1, 96, 96\)"):
        prepared.add(0, logits[:, :, :50])
    with pytest.raises(ModelError, match="with n of at most"):
        prepared.add(1, logits)
    logits[0, 0, 5, 5] = np.nan
    with pytest.raises(ModelError, match="NaN or infinity"):
        prepared.add(0, logits)


def test_flip_averages_the_mirrored_patch() -> None:
    class Ramp(nn.Module):
        def forward(self, patches: Tensor) -> Tensor:
            return torch.linspace(0, 1, patches.shape[3]).expand(patches.shape[0], 1, *patches.shape[2:])

    crops = np.zeros((2, 96, 96, 4), np.uint8)
    np.testing.assert_allclose(refiner(Ramp(), flip=True).predict(crops), 0.5, atol=1e-6)
    assert refiner(Ramp()).predict(crops)[0, 0, 0, 0] == 0
    assert refiner(Ramp()).predict(crops[:0]).shape == (0, 1, 96, 96)


def test_the_gate_keeps_a_mask_and_says_why() -> None:
    frame = blob(120, 120)
    seen = []

    def gate(mask: Mask, said: Any) -> str | None:
        seen.append((mask, said))
        return "no gain expected"

    kept = refiner(Paint(2), gate=gate, outputs=2).refine(photo(120, 120), [frame])
    np.testing.assert_array_equal(kept.masks[0].to_array(), frame)
    assert (kept.reports[0].status, kept.reports[0].reason) == ("unchanged", "no gain expected")
    assert kept.reports[0].patches > 0
    assert seen[0][1].auxiliary.shape == seen[0][1].probability.shape


def test_the_gate_can_be_switched_off() -> None:
    card = ModelCard(name="a", version="1", network=NetworkCard(name="none"), patch=PatchConfig())
    config = RefineConfig(gate=False)
    result = Refiner(Model(Paint(), card), config, gate=lambda *_: "never").refine(photo(99, 99), [blob(99, 99)])
    assert result.reports[0].status == "refined"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    arguments = {"widths": [8, 8, 8, 8], "depth": 1}
    card = ModelCard(
        name="tiny",
        version="2",
        network=NetworkCard(name="light_unet_s", arguments=arguments),
        patch=PatchConfig(padding_px=0, network_size_px=64),
    )
    save_model(path, build_network("light_unet_s", **arguments), card)
    return path


def test_load_takes_the_settings_of_the_card_or_of_the_preset(folder: Path) -> None:
    own = Refiner.load(folder, nms_threshold=0.4, flip=True)
    assert (own.config.patch.padding_px, own.config.patch.network_size_px) == (0, 64)
    assert (own.config.patch.nms_threshold, own.config.flip, own.model.name) == (0.4, True, "tiny@2")
    best = Refiner.load("best", model=folder)
    assert (best.config.patch.nms_threshold, best.config.tries) == (0.25, (1.0, 0.5))
    assert best.config.patch.network_size_px == 64
    lean = Refiner.load("lean", model=folder).config.patch
    assert (lean.scheme, lean.patch_size_px, lean.padding_px, lean.network_size_px) == ("sparse", 64, 0, 64)
    image, frame = photo(70, 90), blob(70, 90)
    assert own.refine(image, [frame]).masks[0].to_array().shape == (70, 90)


def test_bad_settings(folder: Path) -> None:
    with pytest.raises(UnknownName, match="unknown preset or model"):
        Refiner.load("quick")
    with pytest.raises(UnknownName, match="unknown model"):
        Refiner.load("fast", model="none")
    with pytest.raises(ConfigError, match=r"multiple of 16.*Use 112"):
        Refiner.load(folder, network_size_px=100)
    with pytest.raises(ConfigError, match="nms_threshold"):
        Refiner.load(folder, nms_threshold=2)
    with pytest.raises(UnknownName, match="setting"):
        Refiner.load(folder, nms=0.5)
    with pytest.raises(DeviceError):
        Refiner.load(folder, device="cuda:99")


def test_bad_input_names_the_mask() -> None:
    engine, image = refiner(max_pixels=10_000), photo(80, 90)
    good = blob(80, 90)
    with pytest.raises(MaskError, match=r"mask 1: .*expected 80 x 90.*got 90 x 80"):
        engine.refine(image, [good, good.T])
    with pytest.raises(MaskError, match=r"mask 0: .*three points"):
        engine.refine(image, [[[1, 2, 3, 4]]])
    with pytest.raises(MaskError, match=r"mask 0: .*do not add up"):
        engine.refine(image, {"size": [80, 90], "counts": [1, 2, 3]})
    with pytest.raises(MaskError, match="list of masks"):
        engine.refine(image, 5)
    with pytest.raises(LimitError, match="at most 10000 pixels"):
        engine.refine(photo(101, 100), [])
    with pytest.raises(LimitError, match="mask 0"):
        engine.refine(image, [{"size": [1000, 1000], "counts": [1000000]}])
    with pytest.raises(ImageError):
        engine.refine(np.full((80, 90), np.nan), [good])
    with pytest.raises(ImageError, match="cannot read"):
        engine.refine("none.png", [good])


def test_specks_that_the_coarse_mask_had_not_are_taken_back() -> None:
    image, coarse = np.zeros((120, 140, 3), np.uint8), np.zeros((120, 140), np.uint8)
    coarse[30:90, 40:100] = 1
    image[28:92, 38:102] = 255  # the object
    image[60:63, 44:47] = 0  # inside of it, under a patch: a hole of 9 px
    image[20:23, 104:108] = 255  # beside it: an island of 12 px
    plain, tidy = (refiner(Paint(), specks_px=n).refine(image, [coarse]) for n in (0, 64))
    without = plain.masks[0].to_array().copy()
    assert (without[61, 45], without[21, 105]) == (0, 1)
    without[60:63, 44:47], without[20:23, 104:108] = 1, 0
    np.testing.assert_array_equal(tidy.masks[0].to_array(), without)
    report = tidy.reports[0]
    assert (report.added_px, report.removed_px) == (int((without > coarse).sum()), int((without < coarse).sum()))
