// The view of models: what serves, what could, how good each is, activation and going back.
import { $, button, call, el, show } from "./api.js";

const FIGURES = 14; // rows of a comparison, at most

async function activate(name, version, pressed) {
  show($("models-message"), null);
  pressed.disabled = true; pressed.classList.add("busy");
  try { await call("POST", `/v1/models/${encodeURIComponent(name)}/activate`, { version }); await load(); }
  catch (error) { show($("models-message"), error); pressed.disabled = false; pressed.classList.remove("busy"); }
}

// { "ccp share removed": 0.41 } of nested figures.
function flat(value, path = []) {
  if (typeof value === "number") return [[path.join(" ").replaceAll("_", " ") || "value", value]];
  if (!value || typeof value !== "object" || Array.isArray(value)) return [];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, key === "measures" ? path : [...path, key]));
}

const day = (time) => (time ? new Date(time).toLocaleDateString([], { dateStyle: "medium" }) : "");
const head = (text) => el("th", { scope: "col", textContent: text });

function table(model, details) {
  const columns = details.map((d) => new Map(flat(d.figures))), names = [...new Set(columns.flatMap((c) => [...c.keys()]))];
  const line = (name, cells) => el("tr", {}, el("th", { scope: "row", textContent: name }), ...cells.map((c) => el("td", {}, c)));
  const state = (d) => {
    if (d.version === model.active) return el("span", { className: "pill ok", textContent: "serving" });
    const go = button(d.previous ? "Roll back" : "Activate", () => activate(model.name, d.version, go));
    go.setAttribute("aria-label", `${go.textContent} ${d.version}`);
    return go;
  };
  const rows = [line("State", details.map(state)), line("Came", details.map((d) => [d.source === "bundled" ? "with the package" : "into the store", day(d.created)].filter(Boolean).join(", ")))];
  if (details.some((d) => d.label)) rows.splice(1, 0, line("Name", details.map((d) => d.label)));
  const shown = names.slice(0, FIGURES).map((name) => line(name, columns.map((c) => (c.has(name) ? String(+c.get(name).toPrecision(4)) : "–"))));
  return el("div", { className: "scroll" }, el("table", { className: "plain versions" }, el("caption", { className: "hidden", textContent: `Versions of ${model.name}` }), el("thead", {}, el("tr", {}, head("Version"), ...details.map((d) => head(d.version)))), el("tbody", {}, ...rows, ...shown)));
}

function card(model) {
  const details = model.details?.length ? model.details : model.versions.map((version) => ({ version, source: "bundled", figures: {} }));
  const title = el("h2", { textContent: model.name });
  model.presets.forEach((p) => title.append(el("span", { className: "pill", textContent: p })));
  const node = el("article", { className: "card" }, title, table(model, details));
  if (model.card) node.append(el("details", {}, el("summary", { textContent: "Model card of what serves" }), el("pre", { tabIndex: 0, textContent: JSON.stringify({ ...model.card, estimate: undefined, audit: undefined }, null, 1) })));
  return node;
}

export async function load() {
  try {
    const { models } = await call("GET", "/v1/models");
    $("models-body").replaceChildren(...models.map(card));
    show($("models-message"), null);
  } catch (error) { show($("models-message"), error); }
}

export const start = () => $("models-refresh").addEventListener("click", load);
