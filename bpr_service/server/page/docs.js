// OpenAPI, drawn: each route with its bodies and answers, snippets in three languages, and a form to try it.
import { $, call, el, key } from "./api.js";

const short = (k, v) => (typeof v === "string" && v.length > 240 ? `${v.slice(0, 60)}… (${v.length} characters)` : v);
const json = (value) => el("pre", { tabIndex: 0, textContent: JSON.stringify(value, short, 1) });

function resolve(schema, all, depth = 0) {
  if (!schema || depth > 5) return schema;
  if (schema.$ref) return resolve(all[schema.$ref.split("/").pop()] || {}, all, depth + 1);
  if (Array.isArray(schema)) return schema.map((s) => resolve(s, all, depth));
  if (typeof schema !== "object") return schema;
  return Object.fromEntries(Object.entries(schema).filter(([k]) => k !== "title").map(([k, v]) => [k, resolve(v, all, depth + 1)]));
}

// A body to begin with: the route's example, else the names of what it needs.
function sample(op, all) {
  const body = op.requestBody?.content?.["application/json"];
  if (!body) return null;
  const [example] = Object.values(body.examples || {});
  if (example) return example.value;
  const { properties = {}, required = [] } = resolve(body.schema, all) || {};
  return Object.fromEntries(required.map((name) => [name, properties[name]?.type === "array" ? [] : properties[name]?.enum?.[0] ?? ""]));
}

const indent = (text, by) => text.split("\n").join(`\n${" ".repeat(by)}`);
const python = (value) => JSON.stringify(value, null, 4).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");

function snippets(verb, path, body) {
  const url = location.origin + path, keyed = Boolean(key.get()), text = body && JSON.stringify(body, null, 1);
  const curl = [`curl --fail -X ${verb} "${url}"`, ...(keyed ? ['-H "Authorization: Bearer $KEY"'] : []), ...(body ? ['-H "Content-Type: application/json"', "-d @body.json"] : [])].join(" \\\n  ");
  const py = [
    ...(keyed ? ["import os", ""] : []), "import httpx", "",
    `answer = httpx.request("${verb}", "${url}"${body ? `,\n    json=${indent(python(body), 4)}` : ""}${keyed ? ',\n    headers={"Authorization": f"Bearer {os.environ[\'KEY\']}"}' : ""})`,
    "answer.raise_for_status()", "print(answer.text)",
  ].join("\n");
  const options = [`method: "${verb}"`, ...(keyed || body ? [`headers: { ${[...(keyed ? ["Authorization: `Bearer ${key}`"] : []), ...(body ? ['"Content-Type": "application/json"'] : [])].join(", ")} }`] : []), ...(body ? [`body: JSON.stringify(${indent(text, 2)})`] : [])];
  const js = `const answer = await fetch("${url}", {\n  ${options.join(",\n  ")},\n});\nif (!answer.ok) throw new Error((await answer.json()).detail);\nconsole.log(await answer.text());`;
  return { curl: body ? `cat > body.json <<'END'\n${text}\nEND\n${curl}` : curl, Python: py, JavaScript: js };
}

function shown(verb, path, body) {
  const code = el("pre", { tabIndex: 0 }), texts = snippets(verb, path, body), row = el("div", { className: "row tight", role: "group", ariaLabel: "Language" });
  const choose = (name) => { code.textContent = texts[name]; [...row.children].forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === name))); };
  for (const name of Object.keys(texts)) row.append(Object.assign(el("button", { type: "button", className: "quiet", textContent: name }), { onclick: () => choose(name) }));
  const copy = Object.assign(el("button", { type: "button", className: "quiet", textContent: "Copy" }), { onclick: async () => { await navigator.clipboard?.writeText(code.textContent); copy.textContent = "Copied"; } });
  row.append(copy);
  choose("curl");
  return el("div", {}, row, code);
}

function tryIt(verb, path, op, body) {
  const fields = (op.parameters || []).filter((p) => p.in !== "header").map((p) => ({ p, input: el("input", { type: "text", required: p.required, placeholder: p.required ? "" : "left out" }) }));
  const text = body && el("textarea", { rows: 10, spellcheck: false, value: JSON.stringify(body, null, 1), ariaLabel: "Body" });
  const answer = el("pre", { tabIndex: 0, hidden: true, ariaLabel: "Answer" }), form = el("form", { className: "try" });
  for (const { p, input } of fields) form.append(el("label", {}, `${p.name} `, input));
  if (text) form.append(text);
  form.append(el("div", { className: "row end" }, el("button", { textContent: `Send ${verb}` })), answer);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const query = new URLSearchParams();
    let url = path;
    for (const { p, input } of fields) if (p.in === "path") url = url.replace(`{${p.name}}`, encodeURIComponent(input.value)); else if (input.value) query.set(p.name, input.value);
    answer.hidden = false; answer.textContent = "…";
    try {
      const value = await call(verb, `${url}${query.size ? `?${query}` : ""}`, text ? JSON.parse(text.value) : undefined);
      answer.textContent = typeof value === "string" ? value || "(nothing)" : JSON.stringify(value, short, 1);
    } catch (error) { answer.textContent = error instanceof SyntaxError ? "The body is not JSON." : error.message; }
  };
  return form;
}

function fill(node, verb, path, op, all) {
  const body = sample(op, all), part = (title, ...inner) => node.append(el("h2", { textContent: title }), ...inner);
  if (op.description?.includes("\n")) node.append(el("p", { textContent: op.description }));
  part("As code", shown(verb, path, body));
  if (!path.includes("/events")) part("Try it", tryIt(verb, path, op, body));
  for (const [type, content] of Object.entries(op.requestBody?.content || {})) part(`Body: ${type}`, json(resolve(content.schema, all)));
  part("Answers", el("dl", { className: "answers" }, ...Object.entries(op.responses || {}).flatMap(([code, r]) => [el("dt", {}, el("code", { textContent: code })), el("dd", { textContent: r.description })])));
}

function route(path, verb, op, all) {
  const node = el("details", { className: "card" }, el("summary", {}, el("span", { className: "route" }, el("span", { className: "verb", textContent: verb }), el("code", { textContent: path }), el("span", { className: "muted", textContent: (op.description || op.summary || "").split("\n")[0] }))));
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) fill(node, verb, path, op, all); });
  return node;
}

const document_ = await (await fetch("/openapi.json")).json();
$("title").textContent = `${document_.info.title} ${document_.info.version}`;
$("about").textContent = `${document_.info.summary} ${document_.info.description}`;
const first = (path) => (path.startsWith("/v1") ? 0 : path.startsWith("/v2") ? 2 : 1);
const paths = Object.entries(document_.paths).sort(([a], [b]) => first(a) - first(b));
$("routes").replaceChildren(...paths.flatMap(([path, ops]) => Object.entries(ops).map(([verb, op]) => route(path, verb.toUpperCase(), op, document_.components.schemas))));
