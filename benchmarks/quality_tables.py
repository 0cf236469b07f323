"""The tables of `quality.py`: what is shown of each set, and what it should reach."""

from __future__ import annotations

from typing import Any

from quality_domains import DOMAINS

Rows = list[tuple[str, str, str, float | None]]
TABLE: dict[str, Rows] = {
    # what is printed, the measure, how it is shown, the target
    "instance": [
        ("(1 - F@1px) removed", "share_removed", "percent", None),
        ("masks worse", "worse_share", "percent", None),
        ("masks better", "better_share", "percent", None),
        ("mean IoU", "iou_after", "plain", None),
        ("mBA", "mba", "plain", None),
        ("boundary AP at .005", "boundary_ap_0.005", "gain", None),
        ("boundary AP at .01", "boundary_ap_0.01", "gain", None),
        ("boundary AP at .02", "boundary_ap_0.02", "gain", None),
        ("band error", "band_error_after", "percent", None),
    ],
    "semantic": [
        ("mIoU", "mIoU", "gain", 2.5),
        ("class F@1px", "AF_present", "gain", 12.0),
        ("class F@1px, absent = 1", "AF", "gain", None),
    ],
    "panoptic": [("PQ", "PQ", "gain", 3.3), ("boundary PQ", "boundary_PQ", "gain", 5.0)],
}
TARGETS: dict[tuple[str, str], float] = {
    ("ccp", "share_removed"): 55.0,
    ("ccp", "worse_share"): 4.0,
    ("bsds", "share_removed"): 32.0,
    ("bsds", "worse_share"): 8.0,
    ("blocks", "share_removed"): 64.0,
    ("blocks", "worse_share"): 1.5,
    ("exact", "iou_after"): 0.997,
    ("exact", "worse_share"): 5.0,
    ("blank", "worse_share"): 0.0,
    ("ccp_x3", "share_removed"): 40.0,
    ("ccp_x3", "worse_share"): 6.0,
    **{(name, "share_removed"): 45.0 for name in DOMAINS},
    **{(name, "worse_share"): 5.0 for name in DOMAINS},
    **{(f"{name}_exact", "worse_share"): 10.0 for name in DOMAINS},
    **{(f"{name}_deeplab", "share_removed"): 40.0 for name in ("davis", "penn")},
    **{(f"{name}_deeplab", "worse_share"): 2.0 for name in ("davis", "penn")},
    **{(f"{name}_soft", "share_removed"): 20.0 for name in ("davis", "penn")},
    **{(f"{name}_soft", "worse_share"): 3.0 for name in ("davis", "penn")},
    **{(f"{name}_unet", "worse_share"): 8.0 for name in ("glas", "lung", "smear")},
}
LESS_IS_BETTER = ("worse_share", "band_error_after")
CONFIDENCES = ("ECE", "rank", "at 0.5", "at 0.8", "at 0.9", "at 1", "area", "least area")
"""What is told of a confidence: calibration error, rank correlation, 1 - F at 2 px of the surest shares of masks."""
RIGHT_ALREADY = ("exact", "blank", *(f"{name}_exact" for name in DOMAINS))
HIDDEN = dict.fromkeys(RIGHT_ALREADY, ("share_removed", "better_share", "band_error_after"))


def as_shown(style: str, value: float, base: float) -> float:
    """A measure as the table shows it: percent, points above the coarse masks, or as it is."""
    return {"percent": 100 * value, "gain": 100 * (value - base), "plain": value}[style]


def table(results: dict[str, dict[str, dict[str, Any]]], kinds: dict[str, str]) -> list[list[str]]:
    """Rows of text: set, measure, each method with half the width of its interval, target."""
    methods = list(next(iter(results.values())))
    rows = [["set", "measure", *methods, "target"]]
    for name, of_method in results.items():
        for label, key, style, target in TABLE[kinds[name]]:
            if key in HIDDEN.get(name, ()):
                continue
            wanted = TARGETS.get((name, key), target)
            cells = [_cell(of_method[m], key, style, of_method["coarse"]) for m in methods]
            sign = "<=" if key in LESS_IS_BETTER else ">="
            rows.append([name, label, *cells, f"{sign} {wanted:g}" if wanted is not None else ""])
        rows.append([name, "ms a mask", *[f"{of_method[m]['ms_per_mask']:.1f}" for m in methods], ""])
    return rows


def more_tables(results: dict[str, dict[str, dict[str, Any]]], kinds: dict[str, str]) -> list[list[list[str]]]:
    """Rows of text of the instance sets.

    Slices by size and coarse IoU, wrong pixels by their distance from the coarse boundary, and what each method's
    confidence is worth.
    """
    methods = list(next(iter(results.values())))
    sliced = [["set", "slice", *(f"{m}: removed / worse" for m in methods[1:])]]
    wrong = [["set", "wrong px, from the coarse boundary", *methods]]
    sure = [["set", "confidence", *CONFIDENCES]]
    for name in (name for name in results if kinds[name] == "instance"):
        of_method = results[name]
        for part in of_method[methods[0]]["slices"]:
            cells = [of_method[m]["slices"][part] for m in methods[1:]]
            shown = [f"{100 * c['share_removed']:.1f}% / {100 * c['worse_share']:.1f}%" for c in cells]
            sliced.append([name, f"{part} ({int(of_method[methods[0]]['slices'][part]['count'])})", *shown])
        for band in of_method[methods[0]]["wrong_px"]:
            wrong.append([name, band, *(str(of_method[m]["wrong_px"][band]) for m in methods)])
        for method in methods:
            if found := of_method[method]["confidence"]:
                sure.append([name, method, *(f"{found[key]:.3f}" for key in CONFIDENCES)])
    return [rows for rows in (sliced, wrong, sure) if len(rows) > 1]


def _cell(values: dict[str, Any], key: str, style: str, coarse: dict[str, Any]) -> str:
    if values is coarse:
        return {"percent": f"{100 * values[key]:.1f}%", "gain": f"{100 * values[key]:.2f}"}.get(
            style, f"{values[key]:.4f}"
        )
    value, base = as_shown(style, values[key], coarse[key]), values["interval"]
    half = (base["high"][key] - base["low"][key]) / 2 * (1 if style == "plain" else 100)
    return {"percent": f"{value:.1f}% ±{half:.1f}", "gain": f"{value:+.2f} ±{half:.2f}"}.get(
        style, f"{value:.4f} ±{half:.4f}"
    )


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for k, row in enumerate(rows):
        print(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
        if k == 0:
            print("  ".join("-" * w for w in widths))
