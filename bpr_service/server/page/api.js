// Calls of the service. The key lives in this tab only; problems (RFC 9457) become errors with their detail.

export const $ = (id) => document.getElementById(id);

export const key = {
  get: () => sessionStorage.getItem("bpr-key") || "",
  set: (value) => (value ? sessionStorage.setItem("bpr-key", value) : sessionStorage.removeItem("bpr-key")),
};

export async function call(method, path, body, signal) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  const text = await response.text();
  let value = text;
  try { value = JSON.parse(text); } catch { /* plain text */ }
  if (!response.ok) {
    const after = response.headers.get("Retry-After");
    const error = new Error((value && value.detail) || `The server answered ${response.status}.`);
    if (after) error.message += ` Try again in ${after} s.`;
    error.status = response.status;
    throw error;
  }
  return value;
}

export function show(element, error) {
  element.hidden = !error;
  element.textContent = error ? error.message : "";
  if (error && error.status === 401) element.textContent += " Use the button “API key” above.";
}

export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const button = (text, go, className = "quiet") => Object.assign(el("button", { type: "button", className, textContent: text }), { onclick: go });

export function save(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
