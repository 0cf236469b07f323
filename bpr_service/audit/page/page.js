"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const MASKS = DATA.masks, ROW = 64;
const $ = (id) => document.getElementById(id);
const el = (name, set = {}, ...children) => { const e = Object.assign(document.createElement(name), set); e.append(...children); return e; };
const STORE = "bpr-audit " + DATA.id;
let decisions = {}, history = [], shown = [], at = 0, view = null;
try { decisions = JSON.parse(localStorage.getItem(STORE)) || {}; } catch { decisions = {}; }

/* ---- pictures: each lies as text behind this script, and is made one when it is looked at ---- */
const picture = (i) => { const e = $("p" + i); return e ? "data:image/webp;base64," + e.textContent : ""; };

/* So do outlines, places and records, as JSON. */
const whole = (m) => {
  const e = m.before ? null : $("m" + m.picture);
  return e ? Object.assign(m, JSON.parse(e.textContent)) : m.before ? m : { ...m, before: [], after: null, where: [] };
};

/* ---- the list: only what can be seen is built ---- */
function filtered() {
  const state = $("state").value, kind = $("kind").value, of = $("class").value;
  return MASKS.filter((m) => (!kind || m.kinds.includes(kind)) && (!of || m.class === of)
    && (!state || (state === "open" ? !decisions[m.key] : state === "sample" ? m.sample : decisions[m.key] === state)));
}
function refilter() {
  const current = shown[at];
  shown = filtered();
  at = Math.max(0, shown.indexOf(current));
  $("tall").style.height = shown.length * ROW + "px";
  $("list").scrollTop = at * ROW;
  draw(); show();
}
const WORD = { keep: "kept", take: "taken", person: "for a person" };
function draw() {
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4), last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 9);
  const rows = [];
  for (let i = first; i < last; i++) {
    const m = shown[i], d = decisions[m.key];
    const row = el("div", { className: "item", onclick: () => go(i) },
      el("img", { src: picture(m.picture), alt: "" }),
      el("div", {}, el("b", { textContent: m.class || "mask " + m.id }), el("small", { textContent: m.kinds.join(", ") || m.image })),
      el("em", {}, m.suspicion.toFixed(2), el("small", { textContent: d ? WORD[d] : "" })));
    row.style.top = i * ROW + "px";
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(i === at));
    rows.push(row);
  }
  $("tall").replaceChildren(...rows);
  const done = Object.keys(decisions).length;
  $("progress").textContent = `${done} of ${MASKS.length} decided`;
}
function go(i) {
  at = Math.min(Math.max(i, 0), shown.length - 1);
  const list = $("list"), top = at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  draw(); show();
}

/* ---- the mask that is looked at ---- */
const NS = "http://www.w3.org/2000/svg";
const node = (name, set) => { const e = document.createElementNS(NS, name); for (const k in set) e.setAttribute(k, set[k]); return e; };
const ring = (points, close) => { let d = ""; for (let i = 0; i < points.length; i += 2) d += (i ? "L" : "M") + points[i] + " " + points[i + 1]; return d + (close ? "Z" : ""); };
function show() {
  const m = shown[at] && whole(shown[at]);
  $("stage").hidden = !m; $("none").hidden = !!m;
  if (!m) return;
  view = [0, 0, m.width, m.height];
  for (const [id, cls, rings] of [["before", "b", m.before], ["after", "a", m.after]]) {
    const parts = [node("image", { href: picture(m.picture), width: m.width, height: m.height, preserveAspectRatio: "none" })];
    if (rings) parts.push(node("path", { class: cls, d: rings.map((r) => ring(r, true)).join("") }));
    if (id === "before") for (const w of m.where) parts.push(node("path", { class: "off", d: ring(w.line, false) }));
    $(id).replaceChildren(...parts);
  }
  $("title").textContent = `${m.class || "mask"} · ${m.image} · id ${m.id}`;
  const f = (v) => v === null ? "?" : v.toFixed(3);
  $("figures").textContent = `suspicion ${m.suspicion.toFixed(2)} · expected IoU ${f(m.iou)} · boundary F ${f(m.boundary_f)}`;
  $("kinds").replaceChildren(...m.kinds.map((k) => el("span", { textContent: k })));
  $("panels").classList.toggle("one", !m.better);
  $("unproposed").hidden = m.better;
  $("take").disabled = !m.better;
  for (const d of ["keep", "take", "person"]) $(d).setAttribute("aria-pressed", String(decisions[m.key] === d));
  $("places").replaceChildren(...m.where.map((w) => el("button", { textContent: `${Math.abs(w.px)} px ${w.px > 0 ? "short" : "too far"}, ${w.length} px long`, onclick: () => zoomTo(w.line) })));
  zoom();
}
function zoom() { for (const id of ["before", "after"]) $(id).setAttribute("viewBox", view.map((v) => v.toFixed(2)).join(" ")); }
function scale(by, x = view[0] + view[2] / 2, y = view[1] + view[3] / 2) {
  const m = shown[at], to = Math.min(Math.max(view[2] / by, 8), m.width * 1.5) / view[2];
  view = [x - (x - view[0]) * to, y - (y - view[1]) * to, view[2] * to, view[3] * to];
  zoom();
}
function zoomTo(line) {
  const m = shown[at], xs = line.filter((_, i) => i % 2 === 0), ys = line.filter((_, i) => i % 2);
  const w = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys), 12) * 1.8;
  const h = w * m.height / m.width;
  view = [(Math.max(...xs) + Math.min(...xs) - w) / 2, (Math.max(...ys) + Math.min(...ys) - h) / 2, w, h];
  zoom();
}
for (const id of ["before", "after"]) {
  const svg = $(id);
  const place = (e) => { const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse()); return [p.x, p.y]; };
  let from = null;
  svg.addEventListener("wheel", (e) => { e.preventDefault(); scale(e.deltaY < 0 ? 1.25 : 0.8, ...place(e)); }, { passive: false });
  svg.addEventListener("pointerdown", (e) => { from = place(e); svg.setPointerCapture(e.pointerId); });
  svg.addEventListener("pointermove", (e) => { if (!from) return; const [x, y] = place(e); view[0] += from[0] - x; view[1] += from[1] - y; zoom(); });
  svg.addEventListener("pointerup", () => { from = null; });
}

/* ---- decisions ---- */
function decide(what) {
  const m = shown[at];
  if (!m || (what === "take" && !m.better)) return;
  history.push([m.key, decisions[m.key]]);
  decisions[m.key] = what;
  keep(); leave(m);
}
function leave(m) {
  const before = at;
  if ($("state").value && $("state").value !== "sample") { shown = filtered(); $("tall").style.height = shown.length * ROW + "px"; }
  go(shown[before] === m ? before + 1 : before);
}
function undo() {
  const last = history.pop();
  if (!last) return;
  if (last[1]) decisions[last[0]] = last[1]; else delete decisions[last[0]];
  keep(); shown = filtered(); $("tall").style.height = shown.length * ROW + "px";
  const back = shown.findIndex((m) => m.key === last[0]);
  go(back < 0 ? at : back);
}
function keep() { try { localStorage.setItem(STORE, JSON.stringify(decisions)); } catch { /* a private window: they last as long as the page */ } }
for (const d of ["keep", "take", "person"]) $(d).onclick = () => decide(d);
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.target.tagName === "SELECT") return;
  const key = e.key.toLowerCase();
  const does = { k: () => decide("keep"), t: () => decide("take"), m: () => decide("person"), z: undo, arrowdown: () => go(at + 1), j: () => go(at + 1), arrowup: () => go(at - 1), pagedown: () => go(at + 10), pageup: () => go(at - 10), home: () => go(0), end: () => go(shown.length - 1), "+": () => scale(1.25), "=": () => scale(1.25), "-": () => scale(0.8), 0: show, h: () => $("stage").classList.toggle("bare") }[key];
  if (does) { e.preventDefault(); does(); }
});

/* ---- what is saved ---- */
function save(name, parts, type) {
  const a = el("a", { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 60000);
}
const marked = () => MASKS.filter((m) => decisions[m.key] === "person").map(whole);
const outline = (m, r) => { const out = []; for (let i = 0; i < r.length; i += 2) out.push([r[i] + m.x, r[i + 1] + m.y]); return out; };
const byImage = (masks) => { const found = new Map(); for (const m of masks) found.set(m.image, [...(found.get(m.image) || []), m]); return found; };
const xml = (text) => String(text).replace(/[<>&"']/g, (c) => `&#${c.charCodeAt(0)};`);
const LISTS = {
  decisions: () => ["decisions.json", JSON.stringify({ report: DATA.id, annotations: DATA.annotations, decisions }, null, 1)],
  fiftyone: () => ["fiftyone.json", JSON.stringify({ samples: [...byImage(marked())].map(([image, masks]) => ({ filepath: DATA.images + "/" + image, tags: ["bpr-audit"], audit: { detections: masks.map((m) => ({ label: m.class || String(m.id), mask_id: m.id, suspicion: m.suspicion, kinds: m.kinds, bounding_box: [m.box[0] / m.size[1], m.box[1] / m.size[0], m.box[2] / m.size[1], m.box[3] / m.size[0]] })) } })) }, null, 1)],
  cvat: () => ["cvat.xml", `<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n` + [...byImage(marked())].map(([image, masks], i) => `<image id="${i}" name="${xml(image)}" width="${masks[0].size[1]}" height="${masks[0].size[0]}">\n` + masks.flatMap((m) => m.before.map((r) => `<polygon label="${xml(m.class || m.id)}" source="bpr-audit" occluded="0" points="${outline(m, r).map((p) => p.map((v) => v.toFixed(2)).join(",")).join(";")}" z_order="0"><attribute name="mask_id">${xml(m.id)}</attribute><attribute name="suspicion">${m.suspicion}</attribute></polygon>\n`)).join("") + "</image>\n").join("") + "</annotations>\n"],
  labelstudio: () => ["label-studio.json", JSON.stringify([...byImage(marked())].map(([image, masks]) => ({ data: { image: DATA.images + "/" + image }, predictions: [{ model_version: "bpr-audit", result: masks.flatMap((m) => m.before.map((r, i) => ({ id: `${m.key}-${i}`, type: "polygonlabels", from_name: "label", to_name: "image", original_width: m.size[1], original_height: m.size[0], meta: { text: [`suspicion ${m.suspicion}`, ...m.kinds] }, value: { points: outline(m, r).map(([x, y]) => [100 * x / m.size[1], 100 * y / m.size[0]]), polygonlabels: [m.class || String(m.id)] } }))) }] })), null, 1)],
};
for (const button of document.querySelectorAll("[data-save]")) button.onclick = () => { const [name, text] = LISTS[button.dataset.save](); save(name, [text], name.endsWith("xml") ? "application/xml" : "application/json"); };

/* The annotation file with the taken masks: the new records go where the old ones lie, every other byte is copied. */
$("splice").hidden = !DATA.bytes;
$("original").onchange = async (e) => {
  const file = e.target.files[0], taken = MASKS.filter((m) => decisions[m.key] === "take").map(whole).filter((m) => m.record).sort((a, b) => a.record[0] - b.record[0]);
  e.target.value = "";
  if (!file) return;
  if (file.size !== DATA.bytes) { $("saved").textContent = `That is another file: ${DATA.annotations} has ${DATA.bytes} bytes, this one ${file.size}.`; return; }
  const parts = [];
  let end = 0;
  for (const m of taken) {
    const [start, length, text] = m.record;
    parts.push(file.slice(end, start), text);
    end = start + length;
  }
  save(file.name, [...parts, file.slice(end)], "application/json");
  $("saved").textContent = `${taken.length} masks replaced.`;
};

/* ---- begin ---- */
$("of").textContent = DATA.title;
const option = (v) => el("option", { value: v, textContent: v });
$("kind").append(...[...new Set(MASKS.flatMap((m) => m.kinds))].sort().map(option));
$("class").append(...[...new Set(MASKS.map((m) => m.class))].filter(Boolean).sort().map(option));
for (const id of ["state", "kind", "class"]) $(id).onchange = () => { $("list").focus(); refilter(); };
$("list").addEventListener("scroll", draw);
addEventListener("resize", draw);
refilter();
performance.mark("shown");
/* Pictures follow this script, in the list's order: as soon as those that can be seen are there, they are drawn. */
const SEEN = Math.min(MASKS.length, 20);
function pictured() {
  if (document.readyState === "loading" && SEEN && !$("m" + MASKS[SEEN - 1].picture)) { requestAnimationFrame(pictured); return; }
  draw(); show();
  performance.mark("pictured");
}
pictured();
