// The page of an audit over a job of this server: what it shows is taken out of the page that the job wrote.
import { $, call, el, show } from "./api.js";

// The job's page is a file of its owner's. Its data and pictures are taken from it as text, and nothing of it runs.
const PARTS = /<script type="(application\/json|text\/plain)" id="(data|[pm]\d+)">([^<]*)<\/script>/g;

async function start() {
  const id = location.hash.slice(1);
  try {
    const text = await call("GET", `/v1/jobs/${encodeURIComponent(id)}/result?file=page`), parts = document.createDocumentFragment();
    for (const [, type, name, inside] of text.matchAll(PARTS)) parts.append(el("script", { type, id: name, textContent: inside }));
    if (!parts.querySelector("#data")) throw new Error("The job's page is none of an audit.");
    document.body.append(parts, el("script", { src: "/page/audit-page.js" }));
  } catch (error) {
    show($("message"), error);
    if (error.status === 401) $("message").textContent = "This server has keys: enter yours in the page of its jobs.";
  }
}

addEventListener("hashchange", () => location.reload());
start();
