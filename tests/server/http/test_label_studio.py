"""Label Studio's ML backend protocol, and its brush RLE against an encoder and decoder written from its description."""

from __future__ import annotations

import http.server
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest

from bpr_service.errors import ConfigError, MaskError
from bpr_service.masks.brush_rle import decode_brush, encode_brush
from bpr_service.masks.mask import Mask
from bpr_service.server.label_studio_media import LabelStudioMedia
from tests.server.helpers import HEIGHT, WIDTH, Running, b64, disc, picture, png, serving

GOLDEN = [0, 0, 0, 60, 57, 27, 252, 224, 22, 255, 227, 0, 143, 254, 112, 12, 47, 254]  # fmt: skip


def bits_of(data: list[int]) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def slow_decode(rle: list[int]) -> np.ndarray:
    """All values, one by one, as the format's description says."""
    bits = bits_of(rle)
    at = 0

    def read(n: int) -> int:
        nonlocal at
        at += n
        return int(bits[at - n : at], 2)

    num, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < num:
        run = read(1)
        n = 1 + read(sizes[read(2)])
        out += [read(word)] * n if run else [read(word) for _ in range(n)]
    return np.array(out, np.uint8)


def slow_encode(values: np.ndarray) -> list[int]:
    """Values in stretches of up to 256 that are no runs: a valid form that our encoder never writes."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    for start in range(0, len(values), 256):
        part = values[start : start + 256]
        bits += "0" + "10" + f"{len(part) - 1:08b}" + "".join(f"{v:08b}" for v in part)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def masks() -> list[np.ndarray]:
    r = np.random.default_rng(3)
    empty, full = np.zeros((13, 7), np.uint8), np.ones((300, 301), np.uint8)
    return [empty, full, (r.random((31, 17)) > 0.5).astype(np.uint8), disc().astype(np.uint8)]


@pytest.mark.parametrize("mask", masks(), ids=["empty", "full", "noise", "disc"])
def test_the_brush_codec_agrees_with_the_description(mask: np.ndarray) -> None:
    rle = encode_brush(mask)
    rgba = slow_decode(rle).reshape(*mask.shape, 4)
    assert np.array_equal(rgba, np.repeat((mask * 255)[:, :, None], 4, axis=2))
    assert np.array_equal(decode_brush(rle, *mask.shape), mask > 0)
    assert np.array_equal(decode_brush(slow_encode(rgba.ravel()), *mask.shape), mask > 0)


def test_the_bytes_are_those_of_label_studio() -> None:
    """Written by `encode_rle` of label-studio-converter 0.0.59."""
    mask = np.array([[0, 0, 1, 1, 1], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1]], np.uint8)
    assert encode_brush(mask) == GOLDEN


def test_only_alpha_counts_and_half_is_foreground() -> None:
    rgba = np.full((5, 6, 4), 255, np.uint8)
    rgba[:, :, 3] = np.arange(30).reshape(5, 6) * 8
    assert np.array_equal(decode_brush(slow_encode(rgba.ravel()), 5, 6), rgba[:, :, 3] >= 128)


@pytest.mark.parametrize(
    "rle", [None, "abc", [], [1, 2, 3], [300] * 20, [-1] * 20, [0] * 40, [[1]], [255] * 40, [1.5, "a"]]
)
def test_a_broken_brush_is_said_so(rle: Any) -> None:
    with pytest.raises(MaskError, match="brush RLE"):
        decode_brush(rle, 4, 4)
    with pytest.raises(MaskError, match="expected"):
        decode_brush(encode_brush(disc().astype(np.uint8))[:60], HEIGHT, WIDTH)


# ---------------------------------------------------------------- the protocol


def region(mask: np.ndarray, name: str = "r1") -> dict[str, Any]:
    """A brush region as Label Studio writes it."""
    return {
        "id": name,
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["Cat"]},
    }


def task(**more: Any) -> dict[str, Any]:
    return {"id": 11, "data": {"image": "data:image/png;base64," + b64(png(picture()))}, **more}


def call(*tasks: dict[str, Any], context: Any = None) -> dict[str, Any]:
    """The body that Label Studio posts."""
    return {
        "tasks": list(tasks),
        "model_version": None,
        "project": "3.1700000000",
        "label_config": '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image"/></View>',
        "params": {"login": None, "password": None, "context": context},
    }


def test_health_and_setup(server: Running) -> None:
    assert server.client.get("/health").json()["status"] == "UP"
    asked = {"project": "3.1700000000", "schema": "<View/>", "hostname": "http://ls", "access_token": "x"}
    assert server.client.post("/setup", json=asked).json()["model_version"].startswith("dummy@")


@pytest.mark.parametrize("where", ["drafts", "annotations", "predictions", "context"])
def test_brush_masks_come_back_refined(server: Running, where: str) -> None:
    mask = disc().astype(np.uint8)
    other = {"id": "box", "type": "rectanglelabels", "value": {"x": 1, "y": 2, "width": 3, "height": 4}}
    result = [other, region(mask)]
    if where == "context":
        request = call(task(annotations=[{"result": [region(mask * 0)]}]), context={"result": result})
    else:
        request = call(task(**{where: [{"result": [region(mask * 0)]}, {"result": result}]}))
    response = server.client.post("/predict", json=request)
    assert response.status_code == 200, response.text
    answer = response.json()
    (prediction,) = answer["results"]
    assert answer["model_version"] == prediction["model_version"]
    (entry,) = prediction["result"]
    assert (entry["id"], entry["from_name"], entry["to_name"], entry["type"]) == ("r1", "tag", "image", "brushlabels")
    assert entry["value"]["brushlabels"] == ["Cat"]
    assert (entry["original_width"], entry["original_height"]) == (WIDTH, HEIGHT)
    expected = server.engine.lane(None).refiner.refine(picture(), [Mask.from_array(mask)])
    assert np.array_equal(decode_brush(entry["value"]["rle"], HEIGHT, WIDTH), expected.masks[0].to_array() > 0)
    assert prediction["score"] == 1.0


def test_several_tasks_are_answered_in_order_and_none_without_brushes_is_lost(server: Running) -> None:
    small, large = (region(disc(r=r).astype(np.uint8), f"r{r}") for r in (20, 40))
    request = call(task(annotations=[{"result": [small]}]), task(), task(annotations=[{"result": [large]}]))
    results = server.client.post("/predict", json=request).json()["results"]
    assert [[r["id"] for r in p["result"]] for p in results] == [["r20"], [], ["r40"]]
    assert server.client.post("/predict", json=call()).json()["results"] == []


def test_images_of_the_media_folder_are_read_and_nothing_else(tmp_path: Path) -> None:
    media = tmp_path / "media"
    (media / "upload" / "1").mkdir(parents=True)
    (media / "upload" / "1" / "a b.png").write_bytes(png(picture()))
    (tmp_path / "secret.png").write_bytes(png(picture()))
    (media / "link.png").symlink_to(tmp_path / "secret.png")
    mask = [{"result": [region(disc().astype(np.uint8))]}]
    with serving({"label_studio_media_dir": media}) as server:

        def status(address: str) -> tuple[int, str]:
            request = call({"data": {"image": address}, "annotations": mask})
            response = server.client.post("/predict", json=request)
            return response.status_code, response.text

        assert status("/data/upload/1/a%20b.png")[0] == 200
        assert status("/data/local-files/?d=upload/1/a b.png")[0] == 200
        for outside in ("/data/../secret.png", "/data/local-files/?d=../secret.png", "/data/link.png"):
            assert status(outside)[0] == 403, outside
        assert status("/data/upload/nope.png")[0] == 422
        for address in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "s3://b/k.png", "/etc/passwd", "//h/data/x"):
            code, text = status(address)
            assert code == 422, address
            assert "addresses are not fetched" in text
    with serving() as server:
        request = call({"data": {"image": "/data/upload/1/a.png"}, "annotations": mask})
        response = server.client.post("/predict", json=request)
        assert response.status_code == 422
        assert "BPR_LABEL_STUDIO_MEDIA_DIR" in response.text


class LabelStudio(http.server.BaseHTTPRequestHandler):
    """Label Studio as far as media go."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        data = png(picture())
        if self.path.startswith("/ls/data/upload/moved"):
            self.send_response(302)
            self.send_header("Location", "/ls/data/upload/a%20b.png")
            self.end_headers()
        elif "a%20b.png" not in self.path:
            self.send_error(404)
        else:
            self.send_response(200)
            if "endless" in self.path:  # more than may be taken, and never said how much
                data = b"x" * (1 << 20)
            else:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


def test_images_are_fetched_from_label_studio_and_nowhere_else() -> None:
    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio)
    Thread(target=here.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{here.server_port}"
    url, mask = f"{host}/ls", [{"result": [region(disc().astype(np.uint8))]}]
    overrides = {"label_studio_url": url, "label_studio_token": "t0", "max_body_bytes": 1 << 19}
    LabelStudio.asked.clear()
    with serving(overrides) as server:

        def status(address: str) -> int:
            request = call({"data": {"image": address}, "annotations": mask})
            return int(server.client.post("/predict", json=request).status_code)

        assert status(f"{url}/data/upload/a b.png") == 200
        assert status("/ls/data/upload/a%20b.png") == 200
        assert LabelStudio.asked == [("/ls/data/upload/a%20b.png", "Token t0")] * 2
        assert status(f"{url}/data/upload/none.png") == 422
        assert status(f"{url}/data/upload/moved.png") == 422
        assert status(f"{url}/data/upload/endless/a%20b.png") == 413
        asked = len(LabelStudio.asked)
        for other in ("http://127.0.0.1:1/a.png", "https" + host[4:], "http://x@" + host[7:] + "@h/a.png", "//h/a.png"):
            assert status(other) == 403, other
        assert len(LabelStudio.asked) == asked, "none of these was asked"
        assert server.engine.wait_idle(5)
        assert server.engine.memory.used_bytes == 0
    here.shutdown()
    with pytest.raises(ConfigError, match="LABEL_STUDIO_URL"):
        LabelStudioMedia("ftp://h", None, 1)


@pytest.mark.parametrize(
    ("request_body", "status"),
    [
        ({}, 422),
        ({"tasks": 5}, 422),
        ({"tasks": [{}]}, 422),
        ({"tasks": [task()] * 33}, 422),
        (call(task(annotations=[{"result": [{**region(disc().astype(np.uint8)), "original_width": 5}]}])), 422),
        (call(task(annotations=[{"result": [{"value": {"rle": [1, 2]}}]}])), 422),
        (call({"data": {"image": "data:image/png;base64,%%"}}), 400),
        (call({"data": {"image": "data:image/png;base64," + b64(b"x")}}), 422),
    ],
)
def test_what_cannot_be_used(server: Running, request_body: Any, status: int) -> None:
    response = server.client.post("/predict", json=request_body)
    assert response.status_code == status, response.text
    assert response.json()["code"] in ("invalid_input", "invalid_mask", "malformed_body", "invalid_image")
    assert server.engine.wait_idle(5), "the slot is freed once its work has ended"
