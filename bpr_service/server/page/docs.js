// OpenAPI, drawn: each route with its bodies, answers and an example.
import { el } from "./api.js";

const $ = (id) => document.getElementById(id);
const json = (value) => el("pre", { tabIndex: 0, textContent: JSON.stringify(value, (k, v) => (typeof v === "string" && v.length > 240 ? `${v.slice(0, 60)}… (${v.length} characters)` : v), 1) });

function resolve(schema, all, depth = 0) {
  if (!schema || depth > 5) return schema;
  if (schema.$ref) return resolve(all[schema.$ref.split("/").pop()] || {}, all, depth + 1);
  if (Array.isArray(schema)) return schema.map((s) => resolve(s, all, depth));
  if (typeof schema !== "object") return schema;
  return Object.fromEntries(Object.entries(schema).filter(([k]) => k !== "title").map(([k, v]) => [k, resolve(v, all, depth + 1)]));
}

function route(path, verb, op, all) {
  const node = el("details", { className: "card" }, el("summary", {}, el("span", { className: "route" }, el("span", { className: "verb", textContent: verb.toUpperCase() }), el("code", { textContent: path }), el("span", { className: "muted", textContent: (op.description || op.summary || "").split("\n")[0] }))));
  if (op.description?.includes("\n")) node.append(el("p", { textContent: op.description }));
  for (const [type, body] of Object.entries(op.requestBody?.content || {})) {
    node.append(el("h2", { textContent: `Body: ${type}` }));
    for (const [name, example] of Object.entries(body.examples || {})) node.append(el("p", { className: "muted", textContent: `Example ${name}` }), json(example.value));
    node.append(json(resolve(body.schema, all)));
  }
  node.append(el("h2", { textContent: "Answers" }), el("dl", { className: "answers" }, ...Object.entries(op.responses || {}).flatMap(([code, r]) => [el("dt", {}, el("code", { textContent: code })), el("dd", { textContent: r.description })])));
  return node;
}

const document_ = await (await fetch("/openapi.json")).json();
$("title").textContent = `${document_.info.title} ${document_.info.version}`;
$("about").textContent = `${document_.info.summary} ${document_.info.description}`;
const first = (path) => (path.startsWith("/v1") ? 0 : path.startsWith("/v2") ? 2 : 1);
const paths = Object.entries(document_.paths).sort(([a], [b]) => first(a) - first(b));
$("routes").replaceChildren(...paths.flatMap(([path, ops]) => Object.entries(ops).map(([verb, op]) => route(path, verb, op, document_.components.schemas))));
