// What changed, mask by mask: go to it, take it or not, and download what was taken.
import { $, button, bytesOf, el, save } from "./api.js";
import { merged } from "./files.js";
import { whole } from "./masks.js";
import { readIds, withoutRejected } from "./png.js";
import { COLOURS } from "./viewer.js";

const LOW = 0.6; // a confidence below which a person should look

export const nameOf = (mask, i) => String(mask.label ?? mask.name ?? (mask.category_id != null ? `class ${mask.category_id}` : mask.id != null ? `mask ${mask.id}` : `mask ${i + 1}`));
const number = (value) => value.toLocaleString("en");

export class Review {
  constructor(state, viewer, redraw) {
    Object.assign(this, { state, viewer, redraw });
    $("save-json").addEventListener("click", () => this.saveJson());
    $("save-png").addEventListener("click", () => this.savePictures());
    $("save-map").addEventListener("click", () => this.saveMap());
    $("accept-all").addEventListener("click", () => this.acceptAll());
  }

  show() {
    const { state } = this, { answer } = state, shown = answer ? answer.masks : state.masks;
    $("changes").tBodies[0].replaceChildren(...shown.map((mask, i) => this.row(mask, i)));
    const map = answer && (answer.label_map || answer.segment_map);
    for (const id of ["save-json", "save-png"]) $(id).hidden = Boolean(map);
    $("save-map").hidden = !map;
    $("downloads").hidden = $("timing").hidden = $("accept-all").hidden = !answer;
    if (!answer) { $("summary").textContent = state.masks.length ? "Not refined yet." : ""; $("taken").textContent = ""; return; }
    const refined = answer.masks.filter((m) => m.status === "refined"), px = answer.masks.reduce((s, m) => s + m.changed_px, 0);
    $("summary").textContent = `${refined.length} of ${answer.masks.length} masks refined, ${number(px)} pixels changed, by ${answer.model.name} ${answer.model.version} (${answer.model.preset}) on ${answer.device} in ${Math.round(answer.timings_ms.total)} ms.`;
    $("steps").replaceChildren(...Object.entries(answer.timings_ms).flatMap(([k, v]) => [el("dt", { textContent: k }), el("dd", { textContent: `${v.toFixed(1)} ms` })]));
    this.tell();
  }

  row(mask, i) {
    const { answer, rejected } = this.state, name = nameOf(mask, i), refined = answer && mask.status === "refined";
    const swatch = el("span", { className: "swatch" });
    swatch.style.background = `rgb(${COLOURS[i % COLOURS.length]})`;
    const go = button("", () => this.choose(i), "go");
    go.append(swatch, name);
    go.setAttribute("aria-pressed", String(this.viewer.chosen === i));
    const what = el("td", {}, go, el("span", { className: `pill${refined ? " ok" : ""}`, textContent: answer ? mask.status : "coarse" }));
    if (answer && (mask.uncertain?.length || (mask.confidence != null && mask.confidence < LOW))) what.append(el("span", { className: "pill bad", textContent: "look here" }));
    if (answer && mask.reason) what.append(el("div", { className: "muted small reason", textContent: mask.reason }));
    const take = el("input", { type: "checkbox", checked: refined && !rejected.has(i), disabled: !refined, ariaLabel: `Take ${name}` });
    take.onchange = () => { if (take.checked) rejected.delete(i); else rejected.add(i); this.redraw(); this.tell(); };
    const change = answer ? [`+${number(mask.added_px)}`, el("br"), `−${number(mask.removed_px)}`] : [];
    const row = el("tr", {}, el("td", {}, answer ? take : ""), what, el("td", {}, ...change), el("td", { textContent: answer && mask.confidence != null ? mask.confidence.toFixed(2) : "" }));
    row.onclick = (event) => { if (!event.target.closest("button, input")) this.choose(i); };
    return row;
  }

  choose(i) {
    this.viewer.choose(i);
    [...$("changes").tBodies[0].querySelectorAll(".go")].forEach((go, n) => go.setAttribute("aria-pressed", String(this.viewer.chosen === n)));
  }

  taken(i) { return this.state.answer.masks[i].status === "refined" && !this.state.rejected.has(i); }

  tell() {
    const { answer, rejected, file } = this.state, refined = answer.masks.filter((m) => m.status === "refined").length, n = refined - rejected.size;
    const rest = file || answer.label_map || answer.segment_map ? "the others stay as they came" : "the others are left out";
    $("taken").textContent = `${n} of ${refined} taken; ${rest}.`;
    $("accept-all").textContent = rejected.size ? "Take all" : "Take none";
  }

  acceptAll() {
    const { answer, rejected } = this.state;
    if (rejected.size) rejected.clear();
    else answer.masks.forEach((m, i) => m.status === "refined" && rejected.add(i));
    this.show();
    this.redraw();
  }

  saveJson() {
    const { state } = this, { answer, file } = state;
    const masks = answer.masks.map((m, i) => (this.taken(i) ? m : { ...m, status: "unchanged", segmentation: state.masks[i].segmentation }));
    const value = file ? merged(file, masks) : { ...answer, masks: answer.masks.filter((_, i) => this.taken(i)) };
    save(file ? file.file : `${state.name}-refined.json`, new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  }

  // A picture for each mask that was taken: white on black, so that every viewer shows it.
  savePictures() {
    const { state } = this;
    state.after.forEach((mask, i) => {
      if (!this.taken(i)) return;
      const sent = state.masks[i], own = sent.name && sent.name.endsWith(".png") ? sent.name : `${state.name}-${i + 1}.png`;
      if (sent.segmentation.soft) save(own, new Blob([bytesOf(state.answer.masks[i].segmentation.png)], { type: "image/png" }));
      else whole(mask, state.bitmap.width, state.bitmap.height).toBlob((blob) => save(own, blob));
    });
  }

  async saveMap() {
    const { answer, map, rejected, name, masks } = this.state;
    const bytes = bytesOf((answer.label_map || answer.segment_map).data);
    let blob = new Blob([bytes], { type: "image/png" }), { ids } = await readIds(bytes);
    if (rejected.size) ({ blob, ids } = await withoutRejected(map, await readIds(bytes), new Set([...rejected].map((i) => masks[i].number))));
    save(`${name}.png`, blob);
    if (answer.segments_info) save(`${name}.json`, new Blob([JSON.stringify({ segments_info: measured(this.state.segments, ids, map.width) }, null, 1)], { type: "application/json" }));
  }
}

// Segments with the area and box that they have in a map; those with no pixel left are left out.
function measured(segments, ids, width) {
  const found = new Map();
  for (let i = 0; i < ids.length; i++) {
    const x = i % width, y = (i - x) / width, m = found.get(ids[i]) || { n: 0, x0: x, y0: y, x1: x, y1: y };
    found.set(ids[i], Object.assign(m, { n: m.n + 1, x0: Math.min(m.x0, x), x1: Math.max(m.x1, x), y1: y }));
  }
  return segments.filter((s) => found.has(s.id)).map((s) => { const m = found.get(s.id); return { ...s, area: m.n, bbox: [m.x0, m.y0, m.x1 - m.x0 + 1, m.y1 - m.y0 + 1] }; });
}
