"""Seeded malformed requests: truncated pictures, bombs, wild RLEs, deep JSON, wrong types, wrong encodings."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from tests.server.helpers import HEIGHT, WIDTH, b64, body, coarse, disc, picture, png

Sent = tuple[str, bytes, str]
"""Task, body, content type."""

TASKS = ("instance", "semantic", "panoptic")
WEIRD: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, 2**63, 2**200, "", "\u0000", "💥" * 50, [], {}, [[]], [None], {"a": {}}, "NaN", -0.0,
)  # fmt: skip


def right(task: str) -> dict[str, Any]:
    """A small right request of a task."""
    request = body(masks=[{"segmentation": coarse().to_rle()}])
    if task != "instance":
        request["masks"] = [{"id": 1, "category_id": 1, "segmentation": coarse().to_rle()}]
    return request


def text(request: Any) -> bytes:
    return json.dumps(request).encode()


def truncated_picture(r: random.Random) -> bytes:
    data = png(picture())
    cut = bytearray(data[: r.randrange(len(data))] if r.random() < 0.5 else data)
    for _ in range(r.randrange(1, 20)):
        if cut:
            cut[r.randrange(len(cut))] = r.randrange(256)
    return text({**right("instance"), "image": {"data": b64(bytes(cut))}})


def bomb(r: random.Random) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = r.choice([1, 0, 2**16, 2**20, 2**31 - 1, r.randrange(1, 30000)])
    head = struct.pack(
        ">IIBBBBB",
        side,
        r.choice([side, 1, 2**31 - 1]),
        r.choice([8, 16, 1, 3]),
        r.choice([0, 2, 3, 6, 9]),
        0,
        0,
        r.choice([0, 1]),
    )
    pixels = zlib.compress(bytes(r.choice([10, 1_000_000])))
    noise = chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(2_000_000))) if r.random() < 0.3 else b""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + noise + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    request = right("instance")
    if r.random() < 0.5:
        request["image"] = {"data": b64(data)}
    else:
        request["masks"] = [{"segmentation": {"png": b64(data)}}]
    return text(request)


def wild_rle(r: random.Random) -> bytes:
    size: Any = r.choice(
        [[HEIGHT, WIDTH], [WIDTH, HEIGHT], [1, 1], [2**20, 2**20], [0, 0], [-1, 5], [HEIGHT], "x", [1e3, 2]]
    )
    kind = r.randrange(4)
    if kind == 0:
        counts: Any = "".join(chr(r.randrange(30, 130)) for _ in range(r.randrange(2000)))
    elif kind == 1:
        counts = [r.choice([0, 1, r.randrange(2**16), 2**40, 2**62]) for _ in range(r.randrange(500))]
    elif kind == 2:
        good = list(coarse().to_rle()["counts"])
        for _ in range(r.randrange(1, 6)):
            good[r.randrange(len(good))] = chr(r.randrange(48, 112))
        counts = "".join(good)
    else:
        counts = r.choice(WEIRD)
    return text({**right("instance"), "masks": [{"segmentation": {"size": size, "counts": counts}}]})


def wild_polygon(r: random.Random) -> bytes:
    numbers = [
        r.choice([r.uniform(-50, 250), 1e30, -1e30, 0, 5e-324, r.randrange(10**6)]) for _ in range(r.randrange(60))
    ]
    polygons: Any = [numbers[: r.randrange(len(numbers) + 1)] for _ in range(r.randrange(4))]
    return text({**right("instance"), "masks": [{"segmentation": polygons}]})


def deep(r: random.Random) -> bytes:
    n = r.choice([10, 200, 300, 900, 1100, 50_000])
    left, end = r.choice([("[", "]"), ('{"a":', "}")])
    nest = left * n + "1" + (end * n if r.random() < 0.8 else "")
    whole = text(right("instance")).decode()
    place = r.choice(['"extra":', '"segmentation":', '"id":', '"image":'])
    return r.choice(
        [
            nest,
            whole.replace('{"segmentation":', '{"x":' + nest + ',"segmentation":'),
            whole.replace('{"segmentation":', "{" + place + nest + ',"segmentation":'),
        ]
    ).encode()


def wrong_type(r: random.Random) -> bytes:
    request = copy.deepcopy(right("instance"))
    request["options"] = {"preset": "balanced", "encoding": "rle", "timeout_s": 5}
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in list(items):
            places.append((node, key))
            walk(value)

    walk(request)
    for _ in range(r.randrange(1, 3)):
        node, key = r.choice(places)
        if r.random() < 0.2 and isinstance(node, dict):
            node.pop(key, None)
        elif key in node if isinstance(node, dict) else key < len(node):
            node[key] = r.choice(WEIRD)
    return text(request)


def noise(r: random.Random) -> bytes:
    data = text(right("instance"))
    kind = r.randrange(4)
    if kind == 0:
        return r.randbytes(r.randrange(3000))
    if kind == 1:
        return data[: r.randrange(len(data))]
    if kind == 2:
        return data.decode().encode(r.choice(["utf-16", "utf-32", "utf-8-sig"]))
    cut = bytearray(data)
    for _ in range(r.randrange(1, 10)):
        cut[r.randrange(len(cut))] = r.randrange(256)
    return bytes(cut)


def multipart(r: random.Random) -> bytes:
    parts = []
    for _ in range(r.randrange(5)):
        name = r.choice(["image", "masks", "options", "segments_info", "label_map", "", "x" * 100])
        content = r.choice(
            [
                b"",
                b"[]",
                b"{}",
                png(picture()),
                png(disc().astype("uint8"))[: r.randrange(400)],
                r.randbytes(50),
                b"[" * 3000,
            ]
        )
        head = r.choice(
            [f'Content-Disposition: form-data; name="{name}"', "X: y", "Content-Disposition: form-data; name=", "\x00"]
        )
        parts.append(b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n")
    data = b"".join(parts) + r.choice([b"--B--\r\n", b"--B", b"", b"--C--"])
    return data[: r.randrange(len(data) + 1)] if r.random() < 0.3 else data


def wild_map(r: random.Random) -> bytes:
    data = r.choice([png(disc().astype("uint8")), png(picture()), png(picture())[:300], b"", r.randbytes(60)])
    request: dict[str, Any] = {"image": {"data": b64(png(picture()))}}
    request[r.choice(["label_map", "segment_map", "masks"])] = r.choice(
        [{"data": b64(data)}, None, [], r.choice(WEIRD)]
    )
    request["segments_info"] = r.choice(
        [[], [{"id": 1}], [{"id": 0, "category_id": 1}], [{"id": 2**24, "category_id": 0}], r.choice(WEIRD)]
    )
    return text(request)


JSON_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    truncated_picture, bomb, wild_rle, wild_polygon, deep, wrong_type, noise, wild_map,
)  # fmt: skip


def malformed(seed: int) -> Sent:
    """Malformed request number ``seed``; the same each time."""
    r = random.Random(seed)
    task = r.choice(TASKS) if r.random() < 0.5 else "instance"
    if r.random() < 0.15:
        return (
            task,
            multipart(r),
            r.choice(["multipart/form-data; boundary=B", "multipart/form-data", "multipart/form-data; boundary="]),
        )
    kind = r.choice(JSON_KINDS)
    if kind is wild_map:
        task = r.choice(TASKS[1:])
    content_type = (
        "application/json"
        if r.random() < 0.97
        else r.choice(["text/json", "application/json; charset=utf-16", "", "a/b"])
    )
    return task, kind(r), content_type
