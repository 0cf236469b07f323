// The view of jobs: progress, what failed and why, log, cancel, resume, result, and submitting one.
import { $, button, call, el, save, show } from "./api.js";

const STOPPED = ["failed", "cancelled"];
const TEMPLATES = {
  refine: { task: "instance", format: "coco", images: "data:images", predictions: "data:predictions.json", out: "data:refined.json", preset: "balanced" },
  audit: { task: "instance", format: "coco", images: "data:images", predictions: "data:annotations.json", out: "data:report.json", page_masks: 1000, sample: 0, preset: "balanced" },
  train: { name: "mine", task: "instance", images: "data:images", ground_truth: "data:truth.json", predictions: "data:coarse.json", preset: "balanced", held_out: { images: "data:val", ground_truth: "data:val.json", predictions: "data:val_coarse.json" }, promote_if_better: false },
};
let timer = 0;

const path = (id, rest = "") => `/v1/jobs/${encodeURIComponent(id)}${rest}`;
const when = (time) => (time ? new Date(time).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "");
const over = (job) => job.state === "done" || STOPPED.includes(job.state);

async function act(go) {
  show($("jobs-message"), null);
  try { await go(); } catch (error) { show($("jobs-message"), error); }
}

const post = (url) => act(async () => { await call("POST", url); await load(); });
const log = (id) => act(async () => {
  const text = await call("GET", path(id, "/log"));
  $("job-log").textContent = text || "(empty)";
  $("job-log").hidden = false;
  $("job-log").focus();
});
const result = (id, file = "") => act(async () => {
  const answer = await call("GET", path(id, `/result${file && `?file=${file}`}`));
  save(`${id}${file && `-${file}`}.json`, new Blob([JSON.stringify(answer, null, 1)], { type: "application/json" }));
});

// What did not work, or was left as it is, in words.
function reasons(job) {
  const lines = [], { failed_count: failed, failed: named, unchanged } = job.result || {};
  if (job.message && job.state !== "done") lines.push(job.message);
  if (job.progress.failed && !job.result) lines.push(`${job.progress.failed} failed so far`);
  if (failed) lines.push(`${failed} failed`, ...(named || []).slice(0, 5).map(String));
  if (unchanged && typeof unchanged === "object") for (const [why, n] of Object.entries(unchanged)) lines.push(`${n} unchanged: ${why}`);
  return lines;
}

function card(job) {
  const { total, done = 0 } = job.progress, bad = job.state === "failed", lines = reasons(job);
  const what = job.request?.out || job.request?.name || "";
  const node = el("article", { className: "card", ariaLabel: `Job ${job.id}` },
    el("div", { className: "row between" }, el("h2", {}, el("code", { textContent: job.id }), el("span", { className: "pill", textContent: job.kind }), el("span", { className: `pill${job.state === "done" ? " ok" : bad ? " bad" : ""}`, textContent: job.state })), el("span", { className: "muted small", textContent: when(job.ended || job.started || job.created) })));
  if (what) node.append(el("p", { className: "muted small", textContent: what }));
  if (total) node.append(el("div", { className: "row bar" }, el("progress", { max: total, value: done, ariaLabel: `${done} of ${total}` }), el("span", { textContent: `${done.toLocaleString("en")} of ${total.toLocaleString("en")}` })));
  if (lines.length) node.append(el("ul", { className: bad ? "reasons bad" : "reasons" }, ...lines.map((text) => el("li", { textContent: text }))));
  const row = el("div", { className: "row" }, button("Log", () => log(job.id)));
  if (STOPPED.includes(job.state)) row.append(button("Resume", () => post(path(job.id, "/resume"))));
  else if (over(job)) row.append(button("Result", () => result(job.id)), ...(job.kind === "train" ? [] : [button("Report", () => result(job.id, "report"))]), ...(job.kind === "audit" ? [el("a", { className: "button", href: `/page/audit.html#${encodeURIComponent(job.id)}`, textContent: "Look at the masks" })] : []));
  else row.append(button("Cancel", () => post(path(job.id, "/cancel"))));
  node.append(row);
  return node;
}

export async function load() {
  clearTimeout(timer);
  try {
    const { jobs } = await call("GET", "/v1/jobs");
    $("jobs-body").replaceChildren(...(jobs.length ? jobs.map(card) : [el("p", { textContent: "No jobs yet." })]));
    $("job-submit").hidden = false;
    show($("jobs-message"), null);
    if (location.hash === "#jobs" && jobs.some((job) => !over(job))) timer = setTimeout(load, 2000);
  } catch (error) {
    const none = error.status === 404;
    $("jobs-body").replaceChildren(none ? el("p", { textContent: "This server runs without jobs. Start it with bpr serve --jobs, and a worker with bpr worker." }) : "");
    $("job-submit").hidden = true;
    show($("jobs-message"), none ? null : error);
  }
}

const fill = () => { $("job-body").value = JSON.stringify(TEMPLATES[$("job-kind").value], null, 1); };

export function start() {
  fill();
  $("jobs-refresh").addEventListener("click", load);
  $("job-kind").addEventListener("change", fill);
  $("job-form").addEventListener("submit", (event) => {
    event.preventDefault();
    act(async () => {
      let request;
      try { request = JSON.parse($("job-body").value); } catch { throw new Error("The request is not JSON."); }
      await call("POST", `/v1/jobs/${$("job-kind").value}`, request);
      await load();
    });
  });
}
