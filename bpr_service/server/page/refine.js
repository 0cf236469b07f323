// The view that refines one image.
import { call, el, save, show } from "./api.js";
import { checkPng, classes, merged, open } from "./files.js";
import { decode, whole } from "./masks.js";
import { COLOURS, Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const HELP = { fast: "Fewest patches and a small network; for many masks at once.", lean: "The network of balanced on half the patches.", balanced: "The default: every boundary pixel is covered.", best: "Densest patches; slowest." };
const state = { image: null, masks: [], name: "image", answer: null, file: null, preset: null };
let viewer;

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
  reader.readAsDataURL(file);
});

async function take(files) {
  show($("message"), null);
  try {
    const all = [...files], json = all.filter((f) => f.name.endsWith(".json") || f.type === "application/json");
    let pictures = all.filter((f) => !json.includes(f));
    // The image is the first picture that is no PNG; of PNGs the first, unless an image is there to add masks to.
    const photo = pictures.find((f) => f.type !== "image/png") || (state.image && !json.length ? undefined : pictures[0]);
    if (photo) { await setImage(photo); pictures = pictures.filter((f) => f !== photo); }
    await addMasks(json, pictures);
  } catch (error) { show($("message"), error); }
}

async function setImage(file) {
  state.image = { data: await read(file) };
  state.name = file.name.replace(/\.[^.]*$/, "");
  state.fileName = file.name;
  state.masks = []; state.answer = null; state.file = null;
  try { state.bitmap = await createImageBitmap(file); }
  catch { throw new Error(`${file.name} is not a picture that this browser can show.`); }
  await update();
}

async function addMasks(json, pngs) {
  const masks = [], opened = [];
  for (const file of json) {
    const one = open(await file.text(), file.name, state.fileName || "");
    const names = classes(one.data);
    opened.push(one);
    masks.push(...one.records.map((m) => (names.has(m.category_id) && m.label === undefined ? { ...m, label: names.get(m.category_id) } : m)));
  }
  for (const file of pngs) { await checkPng(file); masks.push({ name: file.name, segmentation: { png: await read(file) } }); }
  if (json.length && !masks.length) throw new Error(`${json[0].name} holds no mask of this image.`);
  if (!masks.length) return;
  state.masks = masks; state.answer = null;
  state.file = opened.length === 1 && !pngs.length ? opened[0] : null;
  await update();
}

async function update() {
  const n = state.masks.length;
  $("chosen").textContent = state.image ? `${state.name}: ${state.bitmap.width} × ${state.bitmap.height} px, ${n} mask${n === 1 ? "" : "s"}` : n ? `${n} masks, no image yet` : "Nothing chosen yet";
  $("go").disabled = !(state.image && n);
  if (!state.bitmap) return;
  const size = [state.bitmap.width, state.bitmap.height];
  const before = await Promise.all(state.masks.map((m) => decode(m.segmentation, ...size)));
  const after = state.answer ? await Promise.all(state.answer.masks.map((m) => decode(m.segmentation, ...size))) : null;
  state.before = before; state.after = after;
  viewer.show(state.bitmap, before, after);
  table();
}

const pngName = (mask, i) => (mask.name && mask.name.endsWith(".png") ? mask.name : `${state.name}-${i + 1}.png`);

const nameOf = (mask, i) => String(mask.label ?? mask.name ?? (mask.category_id !== undefined ? `class ${mask.category_id}` : mask.id !== undefined ? `mask ${mask.id}` : `mask ${i + 1}`));

function table() {
  const body = $("changes").tBodies[0], answer = state.answer;
  body.replaceChildren();
  (answer ? answer.masks : state.masks).forEach((m, i) => {
    const swatch = el("span", { className: "swatch" });
    swatch.style.background = `rgb(${COLOURS[i % COLOURS.length]})`;
    const status = el("td", {}, el("span", { className: `pill${m.status === "refined" && answer ? " ok" : ""}`, textContent: answer ? m.status : "coarse", title: m.reason || "" }));
    if (answer && m.reason) status.append(el("div", { className: "muted small reason", textContent: m.reason }));
    const number = (v, sign) => el("td", { textContent: answer ? sign + v.toLocaleString("en") : "" });
    body.append(el("tr", {}, el("td", {}, swatch, nameOf(m, i)), status, number(m.added_px, "+"), number(m.removed_px, "−"), number(m.patches, ""), el("td", { textContent: answer && m.confidence != null ? m.confidence.toFixed(2) : "" })));
  });
  $("downloads").hidden = $("timing").hidden = !answer;
  stale();
  if (!answer) { $("summary").textContent = "Not refined yet."; return; }
  const refined = answer.masks.filter((m) => m.status === "refined").length, px = answer.masks.reduce((s, m) => s + m.changed_px, 0);
  $("summary").textContent = `${refined} of ${answer.masks.length} masks refined, ${px.toLocaleString("en")} pixels changed, by ${answer.model.name} ${answer.model.version} (${answer.model.preset}) on ${answer.device} in ${Math.round(answer.timings_ms.total)} ms.`;
  $("steps").replaceChildren(...Object.entries(answer.timings_ms).flatMap(([k, v]) => [el("dt", { textContent: k }), el("dd", { textContent: `${v.toFixed(1)} ms` })]));
}

const chosen = () => document.querySelector("#presets input:checked")?.value;

// Whether what is shown is of other settings than those that are chosen.
function stale() {
  $("stale").hidden = !state.answer || state.preset === chosen();
}

async function submit(event) {
  event.preventDefault();
  const go = $("go"), preset = chosen();
  show($("message"), null);
  go.disabled = true; go.classList.add("busy"); go.textContent = "Refining";
  try {
    state.answer = await call("POST", "/v1/refine/instance", { image: state.image, masks: state.masks, options: preset ? { preset } : {} });
    state.preset = preset;
    await update();
    $("stage").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  } catch (error) { show($("message"), error); }
  go.classList.remove("busy"); go.textContent = "Refine"; go.disabled = false;
}

async function example(name, button) {
  show($("message"), null);
  for (const b of $("examples").children) b.setAttribute("aria-pressed", String(b === button));
  try {
    const { image, masks } = await call("GET", `/v1/examples/${name}`);
    const bytes = Uint8Array.from(atob(image.data), (c) => c.charCodeAt(0));
    Object.assign(state, { image, masks, name, fileName: name, file: null, answer: null, bitmap: await createImageBitmap(new Blob([bytes])) });
    await update();
  } catch (error) { show($("message"), error); }
}

export async function offer() {
  try {
    const [{ default_preset: first, models }, { examples }] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/examples")]);
    const order = ["fast", "lean", "balanced", "best"], presets = models.flatMap((m) => m.presets).sort((a, b) => order.indexOf(a) - order.indexOf(b));
    const help = () => { $("preset-help").textContent = HELP[chosen()] || ""; stale(); };
    $("presets").replaceChildren(...presets.map((p) => el("label", {}, el("input", { type: "radio", name: "preset", value: p, checked: p === first, onchange: help }), p)));
    help();
    $("examples").replaceChildren(...examples.map((name) => { const b = el("button", { type: "button", className: "quiet", textContent: name }); b.onclick = () => example(name, b); return b; }));
    $("examples-field").hidden = examples.length === 0;
    show($("message"), null);
  } catch (error) { show($("message"), error); }
}

export function start() {
  viewer = new Viewer();
  $("form").addEventListener("submit", submit);
  $("image-file").addEventListener("change", async (e) => { if (e.target.files[0]) { show($("message"), null); try { await setImage(e.target.files[0]); } catch (error) { show($("message"), error); } e.target.value = ""; } });
  $("mask-files").addEventListener("change", async (e) => { const all = [...e.target.files], json = all.filter((f) => f.name.endsWith(".json")); show($("message"), null); try { await addMasks(json, all.filter((f) => !json.includes(f))); } catch (error) { show($("message"), error); } e.target.value = ""; });
  const drop = $("drop");
  for (const name of ["dragenter", "dragover"]) addEventListener(name, (e) => { e.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) addEventListener(name, (e) => { e.preventDefault(); drop.classList.remove("over"); });
  addEventListener("drop", (e) => { if (e.dataTransfer?.files.length) take(e.dataTransfer.files); });
  $("save-json").addEventListener("click", () => save(state.file ? state.file.file : `${state.name}-refined.json`, new Blob([JSON.stringify(state.file ? merged(state.file, state.answer.masks) : state.answer, null, 1)], { type: "application/json" })));
  // A picture for each mask, as it came: white on black, so that every viewer shows it.
  $("save-png").addEventListener("click", () => state.after.forEach((mask, i) => whole(mask, state.bitmap.width, state.bitmap.height).toBlob((blob) => save(pngName(state.masks[i], i), blob))));
}
