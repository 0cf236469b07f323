// Views, the server's state, and the key.
import { $, call, key } from "./api.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";
import * as refine from "./refine.js";

const VIEWS = { refine, jobs, models };

function view() {
  const name = VIEWS[location.hash.slice(1)] ? location.hash.slice(1) : "refine";
  for (const id of Object.keys(VIEWS)) {
    $(id).hidden = id !== name;
    if (id === name) $(`tab-${id}`).setAttribute("aria-current", "page");
    else $(`tab-${id}`).removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  VIEWS[name].load?.();
}

async function state() {
  const pill = $("state");
  try {
    const { version, device, notice } = await call("GET", "/version");
    $("notice").textContent = notice || "";
    $("notice").hidden = !notice;
    let ready = true;
    try { await call("GET", "/readyz"); } catch { ready = false; }
    pill.textContent = ready ? `ready · ${version} · ${device}` : "starting or shutting down";
    pill.className = `pill ${ready ? "ok" : "bad"}`;
    return ready;
  } catch {
    pill.textContent = "not reachable";
    pill.className = "pill bad";
    return false;
  }
}

async function watch(was) {
  const ready = await state();
  if (ready && !was) await refine.offer();
  setTimeout(() => watch(ready), ready ? 15_000 : 2_000);
}

$("key-button").addEventListener("click", () => { $("key").value = key.get(); $("key-dialog").returnValue = ""; $("key-dialog").showModal(); });
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("key-dialog").addEventListener("close", () => { if ($("key-dialog").returnValue === "save") { key.set($("key").value.trim()); refine.offer(); view(); } });
for (const module of Object.values(VIEWS)) module.start();
addEventListener("hashchange", view);
view();
watch(false);
