(() => {
  const faults = [], seen = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length > 0;
  const own = (e) => (e.getAttribute("aria-label") || (e.labels && [...e.labels].map((l) => l.textContent).join(" ")) || e.textContent || e.getAttribute("alt") || e.title || "").trim();
  const say = (e, what) => faults.push(`${what}: ${e.outerHTML.slice(0, 120)}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size < ids.length) faults.push("an id is used twice");
  if (document.documentElement.lang !== "en") faults.push("no language");
  for (const landmark of ["main", "nav", "header"]) if (document.querySelectorAll(landmark).length !== 1) faults.push(`not one ${landmark}`);
  if ([...document.querySelectorAll("h1")].filter(seen).length !== 1) faults.push("not one h1");
  for (const e of document.querySelectorAll("button, a, input, select, textarea, progress, summary, [role=img], article, [tabindex='0'], img")) {
    if (!seen(e) && !e.classList.contains("file")) continue;
    if (e.tagName === "IMG" ? !e.hasAttribute("alt") : !own(e)) say(e, "no name");
    if (e.matches("[aria-hidden=true], [aria-hidden=true] *")) say(e, "hidden from some");
  }
  for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]"))
    for (const id of (e.getAttribute("aria-labelledby") || e.getAttribute("aria-describedby") || e.getAttribute("for")).split(" "))
      if (!document.getElementById(id)) say(e, "names what is not there");
  let level = 0;
  for (const h of [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen)) {
    if (+h.tagName[1] > level + 1 && level) say(h, "a heading is left out before this");
    level = +h.tagName[1];
  }
  for (const t of document.querySelectorAll("table")) if (seen(t) && (!t.caption || !t.querySelector("th[scope]"))) say(t, "a table without caption or headers");
  const parts = (c) => { const [r, g, b, a = 1] = c.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const behind = (e) => { const stack = []; for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); stack.push(c); if (c[3] === 1) break; } return stack.reverse().reduce((base, c) => over(c, base), [255, 255, 255]); };
  const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const told = new Set();
  for (let node; (node = walk.nextNode()); ) {
    const e = node.parentElement;
    if (!node.textContent.trim() || told.has(e) || !seen(e) || e.closest("script, style, .corner, .hidden, .skip, :disabled")) continue;
    told.add(e);
    const style = getComputedStyle(e), back = behind(e), fore = over(parts(style.color), back), a = light(fore) + 0.05, b = light(back) + 0.05;
    const big = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && +style.fontWeight >= 700), ratio = Math.max(a, b) / Math.min(a, b);
    if (ratio < (big ? 3 : 4.5)) say(e, `contrast ${ratio.toFixed(2)}`);
  }
  return faults;
})()
