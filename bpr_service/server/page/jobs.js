// The view of jobs: list, progress, log, cancel, resume, result, and submitting one.
import { call, el, save, show } from "./api.js";

const $ = (id) => document.getElementById(id);
const OVER = ["done", "succeeded", "success", "failed", "error", "cancelled"];
let timer = 0;

const list = (answer) => (Array.isArray(answer) ? answer : answer.jobs || []);
const idOf = (job) => job.id || job.job_id;
const statusOf = (job) => String(job.state || job.status || "unknown").toLowerCase();

async function act(path, method = "POST") {
  show($("jobs-message"), null);
  try { await call(method, path); await load(); } catch (error) { show($("jobs-message"), error); }
}

async function log(id) {
  try {
    const answer = await call("GET", `/v1/jobs/${encodeURIComponent(id)}/log`);
    $("job-log").textContent = typeof answer === "string" ? answer || "(empty)" : JSON.stringify(answer, null, 1);
    $("job-log").hidden = false;
  } catch (error) { show($("jobs-message"), error); }
}

async function result(id) {
  try {
    const answer = await call("GET", `/v1/jobs/${encodeURIComponent(id)}/result`);
    save(`${id}.json`, new Blob([typeof answer === "string" ? answer : JSON.stringify(answer, null, 1)], { type: "application/json" }));
  } catch (error) { show($("jobs-message"), error); }
}

function row(job) {
  const id = idOf(job), status = statusOf(job), path = `/v1/jobs/${encodeURIComponent(id)}`, p = job.progress || {};
  const button = (text, go) => { const b = el("button", { type: "button", className: "quiet", textContent: text }); b.onclick = go; return b; };
  const actions = el("div", { className: "row" }, button("Log", () => log(id)));
  if (OVER.includes(status)) {
    if (["failed", "error", "cancelled"].includes(status)) actions.append(button("Resume", () => act(`${path}/resume`)));
    else actions.append(button("Result", () => result(id)));
  } else actions.append(button("Cancel", () => act(`${path}/cancel`)));
  const done = p.done ?? p.completed, total = p.total;
  const bar = total ? el("progress", { max: total, value: done || 0, ariaLabel: `${done || 0} of ${total}` }) : "";
  const good = ["done", "succeeded", "success"].includes(status), bad = ["failed", "error"].includes(status);
  return el("tr", {}, el("td", {}, el("code", { textContent: id })), el("td", { textContent: job.kind || "" }), el("td", {}, el("span", { className: `pill${good ? " ok" : bad ? " bad" : ""}`, textContent: status })), el("td", {}, bar, total ? ` ${done || 0}/${total}` : ""), el("td", {}, actions));
}

export async function load() {
  clearTimeout(timer);
  try {
    const jobs = list(await call("GET", "/v1/jobs"));
    const head = ["Job", "Kind", "State", "Progress", ""].map((t) => el("th", { scope: "col", textContent: t }));
    $("jobs-body").replaceChildren(jobs.length ? el("div", { className: "scroll" }, el("table", { className: "plain" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...jobs.map(row)))) : el("p", { textContent: "No jobs yet." }));
    show($("jobs-message"), null);
    if (location.hash === "#jobs" && jobs.some((j) => !OVER.includes(statusOf(j)))) timer = setTimeout(load, 2000);
  } catch (error) {
    $("jobs-body").replaceChildren(error.status === 404 ? el("p", { textContent: "This server runs without jobs. Start it with bpr serve --jobs." }) : "");
    show($("jobs-message"), error.status === 404 ? null : error);
  }
}

export function start() {
  $("jobs-refresh").addEventListener("click", load);
  $("job-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    show($("jobs-message"), null);
    try { await call("POST", `/v1/jobs/${$("job-kind").value}`, JSON.parse($("job-body").value || "{}")); await load(); }
    catch (error) { show($("jobs-message"), error instanceof SyntaxError ? new Error("The request is not JSON.") : error); }
  });
}
