// The view of models: what serves, what could, and activation.
import { call, el, show } from "./api.js";

const $ = (id) => document.getElementById(id);

async function activate(name, version, button) {
  show($("models-message"), null);
  button.disabled = true; button.classList.add("busy");
  try { await call("POST", `/v1/models/${encodeURIComponent(name)}/activate`, { version }); await load(); }
  catch (error) { show($("models-message"), error); button.disabled = false; button.classList.remove("busy"); }
}

function card(model) {
  const rows = model.versions.map((v) => {
    const active = v === model.active, use = el("button", { type: "button", className: "quiet", textContent: "Activate" });
    use.onclick = () => activate(model.name, v, use);
    return el("tr", {}, el("td", {}, el("code", { textContent: v })), el("td", {}, active ? el("span", { className: "pill ok", textContent: "serving" }) : use));
  });
  const head = el("h2", { textContent: model.name });
  model.presets.forEach((p) => head.append(el("span", { className: "pill", textContent: p })));
  const node = el("div", { className: "card" }, head, el("table", { className: "plain" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", textContent: "Version" }), el("th", { scope: "col", textContent: "State" }))), el("tbody", {}, ...rows)));
  if (model.card) node.append(el("details", {}, el("summary", { textContent: "Model card" }), el("pre", { tabIndex: 0, textContent: JSON.stringify(model.card, null, 1) })));
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
