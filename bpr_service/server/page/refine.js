// The view that refines one image.
import { $, button, bytesOf, call, el, show } from "./api.js";
import { checkMask, classes, isMask, open, pictures, segmentsOf } from "./files.js";
import { decode } from "./masks.js";
import { masksOf, readIds } from "./png.js";
import { Review } from "./review.js";
import { Viewer } from "./viewer.js";

const HELP = {
  fast: "A small network on few patches: about a quarter of the time of balanced, and no confidence.",
  lean: "The network of balanced on half the patches, for less than half the time.",
  balanced: "The default: every boundary pixel is covered, and each mask gets a confidence.",
  best: "The densest patches: the most exact, for twice the time of balanced.",
};
const KINDS = {
  masks: { route: "instance", help: "PNG files of two values, one a mask; or JSON with RLE or polygons: COCO, a list." },
  soft: { route: "instance", help: "Gray PNGs of probabilities, one a mask, before any threshold." },
  ids: { route: "instance", field: "label_map", help: "One PNG whose values are instance ids; 0 is background." },
  classes: { route: "semantic", field: "label_map", help: "One PNG whose values are classes; 255 is never rewritten." },
  panoptic: { route: "panoptic", field: "segment_map", help: "A COCO panoptic PNG, and the JSON with its segments_info." },
};
const state = {};
let viewer, review, busy = Promise.resolve(), request = null, clock = 0, finds = false;

function clear() {
  Object.assign(state, { photo: null, image: null, shown: null, bitmap: null, name: "image", fileName: "", touched: false, ...empty() });
}
const empty = () => ({ masks: [], pngs: [], map: null, segments: null, file: null, answer: null, before: [], after: null, rejected: new Set() });
const kind = () => $("kind").value;
const asked = () => `${kind()} ${$("presets").querySelector("input:checked")?.value} ${$("turned-as").value}`;

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
  reader.readAsDataURL(file);
});

// One thing after the other, with what went wrong said; the newest call ends the request that is under way.
function then(work) {
  request?.abort();
  $("go").disabled = true;
  $("form").setAttribute("aria-busy", "true");
  busy = busy.then(async () => {
    show($("message"), null);
    try { await work(); } catch (error) { if (error.name !== "AbortError") show($("message"), error); }
  });
  const mine = busy;
  mine.then(() => { if (mine === busy) { $("form").setAttribute("aria-busy", "false"); $("go").disabled = !ready(); } });
  return mine;
}
const ready = () => Boolean(state.image && state.masks.length);

async function take(files) {
  const all = [...files], json = all.filter((f) => f.name.endsWith(".json") || f.type === "application/json");
  const rest = all.filter((f) => !json.includes(f));
  // The image is the first picture that is no PNG, else the first of more than two values; or one is there already.
  let photo = rest.find((f) => f.type !== "image/png");
  if (!photo && (!state.touched || rest.length > 1 || json.length)) for (const f of rest) if (!photo && !(await isMask(f))) photo = f;
  if (photo) await setImage(photo);
  await addMasks(json, rest.filter((f) => f !== photo));
}

async function setImage(file) {
  clear();
  Object.assign(state, { touched: true, photo: file, image: { data: await read(file) }, fileName: file.name, name: file.name.replace(/\.[^.]*$/, "") });
  try { state.shown = await pictures(file); }
  catch { throw new Error(`${file.name} is not a picture that this browser can show.`); }
  await update();
}

async function addMasks(json, pngs) {
  if (!json.length && !pngs.length) return;
  if (!state.touched) clear(); // the example's picture has no other masks
  const { field } = KINDS[kind()], segments = state.segments, map = state.map;
  Object.assign(state, { touched: true, ...empty(), pngs });
  offerSwap();
  if (field) Object.assign(state, { map, segments });
  if (field) await addMap(json, pngs);
  else await addEach(json, pngs);
  await update();
}

const offerSwap = () => { $("swap").hidden = !(state.photo && state.pngs.length === 1); };

async function addEach(json, pngs) {
  const masks = [], opened = [], soft = kind() === "soft";
  for (const file of json) {
    const one = open(await file.text(), file.name, state.fileName), names = classes(one.data);
    opened.push(one);
    masks.push(...one.records.map((m) => (names.has(m.category_id) && m.label === undefined ? { ...m, label: names.get(m.category_id) } : m)));
  }
  for (const file of pngs) {
    if (!soft) await checkMask(file);
    masks.push({ name: file.name, segmentation: soft ? { png: await read(file), soft } : { png: await read(file) } });
  }
  if (json.length && !masks.length) throw new Error(`${json[0].name} holds no mask of this image.`);
  Object.assign(state, { masks, file: opened.length === 1 && !pngs.length ? opened[0] : null });
}

async function addMap(json, pngs) {
  if (pngs.length > 1) throw new Error("One PNG holds all ids of an image.");
  if (pngs.length) state.map = { ...(await readIds(new Uint8Array(await pngs[0].arrayBuffer()))), data: await read(pngs[0]) };
  if (json.length) state.segments = segmentsOf(await json[0].text(), json[0].name, state.fileName);
  if (!state.map || (kind() === "panoptic" && !state.segments)) throw new Error(state.map ? "Choose the JSON with its segments_info too." : "Choose the PNG too.");
  const found = masksOf(state.map);
  if (kind() !== "classes") found.delete(0);
  if (found.size > 2000) throw new Error(`The map has ${found.size} ids: more than this page can show. bpr refine reads it.`);
  const word = { classes: "class", panoptic: "segment", ids: "id" }[kind()];
  state.masks = [...found].sort(([a], [b]) => a - b).map(([number, mask]) => ({ number, mask, label: `${word} ${number}` }));
}

// Which way up: as the masks are, where their size says it; else as a person sees the photograph.
function orient() {
  const { upright, stored } = state.shown, turned = upright !== stored;
  $("turned").hidden = !turned;
  const size = state.map || state.file?.records[0]?.segmentation?.size || state.masks[0]?.segmentation?.size;
  const [height, width] = Array.isArray(size) ? size : size ? [size.height, size.width] : [];
  if (turned && width === stored.width && height === stored.height && width !== upright.width) $("turned-as").value = "ignore";
  if (!turned) $("turned-as").value = "apply";
  state.bitmap = turned && $("turned-as").value === "ignore" ? stored : upright;
}

async function update() {
  const n = state.masks.length;
  if (state.shown) orient();
  offerSwap();
  $("find").hidden = !finds || !state.image;
  const size = state.bitmap && `${state.bitmap.width} × ${state.bitmap.height} px`;
  $("chosen").textContent = state.image ? `${state.name}: ${size}, ${n} mask${n === 1 ? "" : "s"}` : n ? `${n} masks, no image yet` : "Nothing chosen yet";
  if (!state.bitmap) return;
  const { width, height } = state.bitmap;
  state.before = await Promise.all(state.masks.map((m) => m.mask || decode(m.segmentation, width, height)));
  state.after = state.answer ? await Promise.all(state.answer.masks.map((m) => decode(m.segmentation, width, height))) : null;
  viewer.show(state.bitmap, state.before, state.after, state.answer ? state.answer.masks.map((m) => m.uncertain || []) : []);
  review.show();
  stale();
}

// The masks that were not taken are shown as they came.
function redraw() {
  viewer.after = state.after.map((m, i) => (state.rejected.has(i) ? state.before[i] : m));
  viewer.draw();
}

function stale() {
  $("stale").hidden = $("stage-stale").hidden = !state.answer || state.asked === asked();
  $("stage").classList.toggle("old", !$("stale").hidden);
}

function body() {
  const preset = $("presets").querySelector("input:checked")?.value, { field } = KINDS[kind()];
  const options = { ...(preset ? { preset } : {}), ...($("turned").hidden ? {} : { exif: $("turned-as").value }) };
  if (!field) return { image: state.image, masks: state.masks, options };
  return { image: state.image, [field]: { data: state.map.data }, ...(kind() === "panoptic" ? { segments_info: state.segments } : {}), options };
}

async function refine() {
  if (!ready()) return;
  const began = Date.now(), made = asked();
  request = new AbortController();
  const tick = () => { $("elapsed").textContent = `${Math.floor((Date.now() - began) / 1000)} s`; };
  $("working").hidden = false; $("go").hidden = true;
  tick();
  clock = setInterval(tick, 500);
  try {
    const answer = await call("POST", `/v1/refine/${KINDS[kind()].route}`, body(), request.signal);
    if (KINDS[kind()].field) answer.masks = inOrder(answer.masks);
    Object.assign(state, { answer, asked: made, rejected: new Set() });
    await update();
  } finally {
    clearInterval(clock);
    request = null;
    $("working").hidden = true; $("go").hidden = false;
  }
}

// What the served segmenter finds takes the place of the masks.
async function find() {
  request = new AbortController();
  const options = $("turned").hidden ? {} : { exif: $("turned-as").value };
  const { masks } = await call("POST", "/v1/segment", { image: state.image, options }, request.signal).finally(() => { request = null; });
  if (!masks.length) throw new Error("The segmenter finds nothing in this image.");
  $("kind").value = "masks"; about();
  const found = masks.map(({ segmentation, category_id, category, score }) => ({ segmentation, category_id, score, label: category }));
  Object.assign(state, empty(), { masks: found });
  await update();
}

// The answer's masks of a map, as the page lists them.
function inOrder(masks) {
  const number = (m) => (kind() === "classes" ? m.category_id : m.id), found = new Map(masks.map((m) => [number(m), m]));
  const gone = { status: "unchanged", reason: "ignored", added_px: 0, removed_px: 0, changed_px: 0, segmentation: null };
  return state.masks.map(({ number: n, label }) => ({ ...(found.get(n) || gone), label }));
}

async function example(name, pressed) {
  for (const b of $("examples").children) b.setAttribute("aria-pressed", String(b === pressed));
  const { image, masks } = await call("GET", `/v1/examples/${name}`);
  const bitmap = await createImageBitmap(new Blob([bytesOf(image.data)]));
  clear();
  $("kind").value = "masks"; about();
  Object.assign(state, { image, masks, name, fileName: name, shown: { upright: bitmap, stored: bitmap } });
  await update();
  await refine();
}

export async function offer() {
  try {
    const asks = ["/v1/models", "/v1/examples", "/version"].map((path) => call("GET", path));
    const [{ default_preset: first, models }, { examples }, { segmenter }] = await Promise.all(asks);
    finds = Boolean(segmenter);
    $("find").hidden = !finds || !state.image;
    const order = ["fast", "lean", "balanced", "best"], presets = models.flatMap((m) => m.presets).sort((a, b) => order.indexOf(a) - order.indexOf(b));
    $("presets").replaceChildren(...presets.map((p) => el("label", {}, el("input", { type: "radio", name: "preset", value: p, checked: p === first, onchange: about }), p)));
    $("examples").replaceChildren(...examples.map((name) => button(name, ({ currentTarget }) => then(() => example(name, currentTarget)))));
    $("examples-field").hidden = examples.length === 0;
    show($("message"), null);
    about();
    const last = $("examples").lastElementChild;
    if (last && !state.touched && !state.image) last.click();
  } catch (error) { show($("message"), error); }
}

function about() {
  $("preset-help").textContent = HELP[$("presets").querySelector("input:checked")?.value] || "";
  $("kind-help").textContent = KINDS[kind()].help;
  stale();
}

// The picture as the mask, and the mask as the picture.
async function swap() {
  const [mask] = state.pngs, { photo } = state;
  await setImage(mask);
  await addMasks([], [photo]);
}

const chosen = (id, use) => $(id).addEventListener("change", (e) => { const files = [...e.target.files]; if (files.length) then(() => use(files)); e.target.value = ""; });

export function start() {
  viewer = new Viewer();
  review = new Review(state, viewer, redraw);
  clear();
  $("form").addEventListener("submit", (event) => { event.preventDefault(); then(refine); });
  $("cancel").addEventListener("click", () => request?.abort());
  $("find").addEventListener("click", () => then(find));
  $("swap").addEventListener("click", () => then(swap));
  $("kind").addEventListener("change", () => { about(); if (state.touched) then(async () => { Object.assign(state, empty()); await update(); }); });
  $("turned-as").addEventListener("change", () => then(() => { state.answer = null; return update(); }));
  chosen("image-file", ([file]) => setImage(file));
  chosen("mask-files", (all) => { const json = all.filter((f) => f.name.endsWith(".json")); return addMasks(json, all.filter((f) => !json.includes(f))); });
  const drop = $("drop");
  for (const name of ["dragenter", "dragover"]) addEventListener(name, (e) => { e.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) addEventListener(name, (e) => { e.preventDefault(); drop.classList.remove("over"); });
  addEventListener("drop", (e) => { const files = [...(e.dataTransfer?.files || [])]; if (files.length) then(() => take(files)); });
}
