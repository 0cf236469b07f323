"""An evaluation as text, and as one self-contained HTML page with charts and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from refiner_training.evaluation.common import Crop, Evaluation, Example
from refiner_training.metrics.change import CHANGE_IOU
from refiner_training.report_charts import bars, line_chart, scatter

TEMPLATE = Path(__file__).with_name("report.html")
HEADLINES = {
    "instance": ("AP", "AP50", "AP75", "AP90", "boundary_AP", "AF"),
    "semantic": ("mIoU", "AF", "pixel_accuracy"),
    "panoptic": ("PQ", "SQ", "RQ", "boundary_PQ"),
}
BAR_MEASURES = {
    "instance": ("AP", "boundary_AP"),
    "semantic": ("IoU", "F"),
    "panoptic": ("PQ", "boundary_PQ"),
}
MAX_POINTS, MAX_CLASSES, MAX_CROPS, PER_CLASS, CROP_PX = 4000, 40, 8, 2, 320
MIN_CROP_AREA_PX = 256  # smaller objects make no picture


def summary_table(evaluation: Evaluation) -> str:
    """Give the measures as aligned text, before and after side by side."""
    rows = [(name, *(_number(name, v) for v in values)) for name, *values in _measure_rows(evaluation.summary)]
    header = ("measure", "before", "after", "change") if "before" in evaluation.summary else ("measure", "value")
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    change = evaluation.summary.get("change")
    return "\n".join(lines + ([_change_line(change)] if change else []))


def write_report(evaluation: Evaluation, path: Path | str) -> None:
    """Write one HTML page that needs no other file and no network."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    inputs = ", ".join(f"{escape(k)} <code>{escape(v)}</code>" for k, v in evaluation.inputs.items())
    change = evaluation.summary.get("change")
    page = template.substitute(
        title=f"Evaluation: {evaluation.task} masks",
        inputs=inputs,
        tiles=_tiles(evaluation),
        change=f'<p class="note">{escape(_change_line(change))}</p>' if change else "",
        charts=_charts(evaluation),
        crops=_crops(evaluation),
        table=_table(evaluation.summary),
        failures=_failures(evaluation),
    )
    Path(path).write_text(page, encoding="utf-8")


def _measure_rows(summary: dict[str, Any]) -> list[tuple[Any, ...]]:
    """List the scalar measures: (name, after), or (name, before, after, change)."""
    before = summary.get("before")
    rows: list[tuple[Any, ...]] = []
    for name, value in summary.items():
        if isinstance(value, dict):
            continue
        if before is None:
            rows.append((name, value))
        else:
            old = before.get(name)
            both = isinstance(value, float) and isinstance(old, float)
            rows.append((name, old, value, value - old if both else None))
    return rows


def _number(name: str, value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _change_line(change: dict[str, Any]) -> str:
    return (
        f"Of {change['count']} matched masks {100 * change['better_share']:.1f}% are better and "
        f"{100 * change['worse_share']:.1f}% worse by more than {CHANGE_IOU} IoU; "
        f"{100 * change['share_removed']:.1f}% of the boundary error (1 - F at {change['f_tolerance_px']} px) is "
        f"gone; wrong pixels within {change['band_px']} px of the true boundary: "
        f"{100 * change['band_error_before']:.2f}% before, {100 * change['band_error_after']:.2f}% after."
    )


def _tiles(evaluation: Evaluation) -> str:
    summary, tiles = evaluation.summary, []
    for name in HEADLINES[evaluation.task]:
        value = summary.get(name)
        if value is None:
            continue
        label = name.replace("_", " ")
        if name == "AF":
            label += f" ({summary['AF_threshold_px']} px)"
        delta = ""
        if "before" in summary and summary["before"].get(name) is not None:
            old = summary["before"][name]
            step = 100 * (value - old)
            kind = "up" if step > 0 else "down" if step < 0 else ""
            delta = f'before {100 * old:.1f} <span class="{kind}">{step:+.1f}</span>'
        tiles.append(
            f'<div class="tile"><div class="name">{escape(label)}</div>'
            f'<div class="value">{100 * value:.1f}</div><div class="delta">{delta}</div></div>'
        )
    return "".join(tiles)


def _charts(evaluation: Evaluation) -> str:
    sections, paired = [], evaluation.per_class_before is not None
    if "AP_per_iou" in evaluation.summary:
        sections.append(_ap_section(evaluation.summary, paired))
    if paired and evaluation.examples:
        sections.append(_scatter_section(evaluation.examples))
    for measure in BAR_MEASURES[evaluation.task]:
        sections.append(_bar_section(evaluation, measure))
    return "".join(f"<section>{s}</section>" for s in sections)


def _ap_section(summary: dict[str, Any], paired: bool) -> str:
    lines, legend = [], []
    for when, source in (("after", summary), ("before", summary.get("before"))):
        if source is None:
            continue
        for kind, key, dashed in (("", "AP_per_iou", ""), ("-boundary", "boundary_AP_per_iou", "dashed")):
            name = ("boundary AP" if kind else "mask AP") + (f", {when}" if paired else "")
            lines.append((name, when + kind, [(float(t), v) for t, v in source[key].items()]))
            legend.append((name, f"border-color:var(--{when})", dashed))
    return (
        "<h2>AP against the IoU threshold</h2>"
        + _legend(legend)
        + line_chart(lines, "IoU threshold", "average precision")
    )


def _scatter_section(examples: Sequence[Example]) -> str:
    shown = list(examples)
    if len(shown) > MAX_POINTS:
        picks = np.random.default_rng(0).choice(len(shown), MAX_POINTS, replace=False)
        shown = [shown[i] for i in sorted(picks)]
    kinds = [_kind(e) for e in shown]
    order = sorted(range(len(shown)), key=lambda i: ("", "better", "worse").index(kinds[i]))
    points = [(float(shown[i].iou_before or 0.0), shown[i].iou_after) for i in order]
    note = "" if len(shown) == len(examples) else f" {len(shown)} of {len(examples)} masks, drawn at random."
    return (
        "<h2>IoU of each mask, before and after</h2>"
        + _legend(
            [
                (f"better by more than {CHANGE_IOU}", "color:var(--after)", "spot"),
                ("worse", "color:var(--worse)", "spot"),
                ("within", "color:var(--soft)", "spot"),
            ]
        )
        + scatter(points, [kinds[i] for i in order], "IoU before", "IoU after")
        + (f'<p class="note">{note}</p>' if note else "")
    )


def _kind(example: Example) -> str:
    return "better" if example.gain > CHANGE_IOU else "worse" if example.gain < -CHANGE_IOU else ""


def _bar_section(evaluation: Evaluation, measure: str) -> str:
    before = evaluation.per_class_before
    rows = {}
    for name, row in evaluation.per_class.items():
        rows[name] = {"before": before.get(name, {}).get(measure)} if before is not None else {}
        rows[name]["after"] = row.get(measure)
    ranked = sorted(rows, key=lambda n: -(rows[n]["after"] or 0.0))
    half = MAX_CLASSES // 2
    shown = ranked if len(ranked) <= MAX_CLASSES else ranked[:half] + ranked[-half:]
    title = f"{measure.replace('_', ' ')} by class"
    note = "" if len(shown) == len(ranked) else f"The best and the worst {half} of {len(ranked)} classes. "
    head = f"<h2>{escape(title)}</h2>" + (f'<p class="note">{note}</p>' if note else "")
    legend = [(when, f"border-color:var(--{when})", "") for when in ("before", "after")]
    return head + (_legend(legend) if before is not None else "") + bars({n: rows[n] for n in shown}, title)


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    spans = (f'<span><i class="{kind}" style="{style}"></i>{escape(name)}</span>' for name, style, kind in entries)
    return f'<div class="legend">{"".join(spans)}</div>'


def _crops(evaluation: Evaluation) -> str:
    """Draw the masks that gained and lost most, or without coarse masks those of highest and lowest IoU."""
    large = [e for e in evaluation.examples if e.area_px >= MIN_CROP_AREA_PX] or evaluation.examples
    paired = evaluation.per_class_before is not None

    ranked = sorted(large, key=lambda e: e.gain)
    # where there is a before, a mask that lost nothing is no bad example, and the other way round
    worst = _varied([e for e in ranked if not paired or e.gain < 0])
    best = _varied([e for e in reversed(ranked) if e not in worst and (not paired or e.gain > 0)])
    legend = [("truth", "border-color:#3ddc97", ""), ("after" if paired else "prediction", "border-color:#4db5ff", "")]
    if paired:
        legend.append(("before", "border-color:#ffb02e", "dashed"))
    out = ""
    for title, chosen in (
        ("Gained most" if paired else "Best masks", best),
        ("Lost most" if paired else "Worst masks", worst),
    ):
        if chosen:
            figures = "".join(_figure(e, evaluation.crop(e)) for e in chosen)
            out += f'<h2>{title}</h2>{_legend(legend)}<div class="crops">{figures}</div>'
    return out


def _varied(examples: Sequence[Example]) -> list[Example]:
    """Take the first MAX_CROPS, of each class PER_CLASS at most."""
    seen: dict[str, int] = {}
    chosen: list[Example] = []
    for example in examples:
        seen[example.label] = seen.get(example.label, 0) + 1
        if seen[example.label] <= PER_CLASS and len(chosen) < MAX_CROPS:
            chosen.append(example)
    return chosen


def _figure(example: Example, crop: Crop) -> str:
    h, w = crop.truth.shape
    side = max(h, w)
    dx, dy = (side - w) / 2, (side - h) / 2
    below = f'<rect class="paper" width="{w}" height="{h}"/>'
    if crop.image is not None:
        below = f'<image width="{w}" height="{h}" href="{_picture(crop.image)}"/>'
    outlines = "".join(
        f'<path class="outline halo" d="{path}"/><path class="outline of-{kind}" d="{path}"/>'
        for kind, mask in (("truth", crop.truth), ("before", crop.before), ("after", crop.prediction))
        if mask is not None and (path := _path(mask))
    )
    title = f"{example.label}, {example.image}"
    numbers = f"IoU <b>{example.iou_after:.3f}</b>"
    if example.iou_before is not None:
        numbers = f"IoU {example.iou_before:.3f} → <b>{example.iou_after:.3f}</b>"
    return (
        f'<figure><div class="frame"><svg viewBox="0 0 {side} {side}" role="img" '
        f'aria-label="{escape(title)}"><g transform="translate({dx} {dy})">{below}{outlines}</g></svg></div>'
        f"<figcaption>{escape(title)}<br>{numbers}</figcaption></figure>"
    )


def _picture(image: Any) -> str:
    """Encode an (h, w, 3) uint8 RGB crop as a JPEG data URL, at most CROP_PX wide or high."""
    import cv2

    scale = CROP_PX / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _path(mask: Any) -> str:
    """Trace a (h, w) mask along its pixels' edges as an SVG path."""
    from bpr_service.masks.mask import Mask

    polygons = Mask.from_array(mask).to_polygons()
    return "".join(
        "M" + "L".join(f"{x:g} {y:g}" for x, y in zip(p[0::2], p[1::2], strict=True)) + "Z" for p in polygons
    )


def _table(summary: dict[str, Any]) -> str:
    paired = "before" in summary
    head = ("measure", "before", "after", "change") if paired else ("measure", "value")
    rows = [
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_number(name, v)}</td>" for v in values) + "</tr>"
        for name, *values in _measure_rows(summary)
    ]
    change = summary.get("change", {})
    rows += [
        f"<tr><td>{escape(name)}</td>{'<td></td>' if paired else ''}<td>{_number(name, v)}</td><td></td></tr>"
        for name, v in change.items()
    ]
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _failures(evaluation: Evaluation) -> str:
    if not evaluation.failures:
        return ""
    items = "".join(
        f"<li><code>{escape(f.file)}</code> {escape(f.entry)}: {escape(f.error)}</li>" for f in evaluation.failures
    )
    return f"<h2>Left out ({len(evaluation.failures)})</h2><ul>{items}</ul>"
