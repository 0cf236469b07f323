// Masks in the browser: COCO RLE, polygons and PNG, each as a box and its bytes {x, y, w, h, bits}.

function runsOf(counts) {
  if (Array.isArray(counts)) return counts;
  const runs = [];
  for (let i = 0; i < counts.length; ) {
    let value = 0, shift = 0, more = true, c = 0;
    while (more) {
      c = counts.charCodeAt(i++) - 48;
      value += (c & 31) * 2 ** shift;
      more = (c & 32) !== 0;
      shift += 5;
    }
    if (c & 16) value -= 2 ** shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

function fromRle({ size: [height, width], counts }) {
  const runs = runsOf(counts);
  let at = 0, x0 = width, y0 = height, x1 = 0, y1 = 0;
  runs.forEach((n, i) => {
    if (i % 2 && n) {
      const first = at, last = at + n - 1, xa = Math.floor(first / height), xb = Math.floor(last / height);
      x0 = Math.min(x0, xa); x1 = Math.max(x1, xb + 1);
      y0 = Math.min(y0, xb > xa ? 0 : first % height); y1 = Math.max(y1, xb > xa ? height : (last % height) + 1);
    }
    at += n;
  });
  if (!x1) return { x: 0, y: 0, w: 0, h: 0, bits: new Uint8Array(0) };
  const w = x1 - x0, h = y1 - y0, bits = new Uint8Array(w * h);
  at = 0;
  runs.forEach((n, i) => {
    if (i % 2) for (let k = at; k < at + n; k++) bits[((k % height) - y0) * w + Math.floor(k / height) - x0] = 1;
    at += n;
  });
  return { x: x0, y: y0, w, h, bits };
}

function fromPixels(canvas, visible) {
  const { width, height } = canvas, data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const bits = new Uint8Array(width * height);
  for (let i = 0; i < bits.length; i++) bits[i] = visible(data, 4 * i) ? 1 : 0;
  return { x: 0, y: 0, w: width, h: height, bits };
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  return canvas;
}

async function fromPng(base64, soft) {
  const bytes = Uint8Array.from(atob(base64.replace(/^data:[^,]*,/, "")), (c) => c.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes]));
  const canvas = canvasOf(picture.width, picture.height);
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return fromPixels(canvas, soft ? (d, i) => d[i] > 127 : (d, i) => d[i + 3] && (d[i] || d[i + 1] || d[i + 2]));
}

function fromPolygons(polygons, width, height) {
  const canvas = canvasOf(width, height), pen = canvas.getContext("2d");
  for (const p of polygons) {
    pen.beginPath();
    for (let i = 0; i + 1 < p.length; i += 2) pen.lineTo(p[i], p[i + 1]);
    pen.fill();
  }
  return fromPixels(canvas, (d, i) => d[i + 3] > 127);
}

export async function decode(segmentation, width, height) {
  if (!segmentation) return { x: 0, y: 0, w: 0, h: 0, bits: new Uint8Array(0) };
  if (typeof segmentation === "string") return fromPng(segmentation);
  if (Array.isArray(segmentation)) return fromPolygons(segmentation, width, height);
  return segmentation.png ? fromPng(segmentation.png, segmentation.soft) : fromRle(segmentation);
}

export const at = (m, x, y) =>
  x >= m.x && y >= m.y && x < m.x + m.w && y < m.y + m.h ? m.bits[(y - m.y) * m.w + x - m.x] : 0;

const painted = new WeakMap(); // mask -> { how, canvas }

// A canvas of the mask's box: filled in a colour, with its outline of `thick` px; made once.
export function paint(mask, colour, alpha, thick) {
  const how = [...colour, alpha, thick].join(), known = painted.get(mask);
  if (known?.how === how) return known.canvas;
  const canvas = fresh(mask, colour, alpha, thick);
  painted.set(mask, { how, canvas });
  return canvas;
}

function fresh(mask, [r, g, b], alpha, thick) {
  const canvas = canvasOf(Math.max(mask.w, 1), Math.max(mask.h, 1)), pen = canvas.getContext("2d");
  const picture = pen.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < mask.h; y++) {
    for (let x = 0; x < mask.w; x++) {
      if (!mask.bits[y * mask.w + x]) continue;
      let shown = alpha;
      if (thick) {
        for (let d = 1; d <= thick; d++) {
          const gx = x + mask.x, gy = y + mask.y;
          if (!at(mask, gx - d, gy) || !at(mask, gx + d, gy) || !at(mask, gx, gy - d) || !at(mask, gx, gy + d)) { shown = 255; break; }
        }
      }
      if (shown) picture.data.set([r, g, b, shown], 4 * (y * mask.w + x));
    }
  }
  pen.putImageData(picture, 0, 0);
  return canvas;
}

// The whole picture: white where the mask is, black elsewhere.
export function whole(mask, width, height) {
  const canvas = canvasOf(width, height), pen = canvas.getContext("2d");
  pen.fillRect(0, 0, width, height);
  if (mask.w) pen.drawImage(paint(mask, [255, 255, 255], 255, 0), mask.x, mask.y);
  return canvas;
}

// Where two masks differ most: tiles of `size` px by the number of pixels, the most first.
export function changes(pairs, size) {
  const tiles = new Map();
  for (const [a, b] of pairs) {
    const x0 = Math.min(a.w ? a.x : Infinity, b.w ? b.x : Infinity), y0 = Math.min(a.h ? a.y : Infinity, b.h ? b.y : Infinity);
    for (let y = y0; y < Math.max(a.y + a.h, b.y + b.h); y++)
      for (let x = x0; x < Math.max(a.x + a.w, b.x + b.w); x++)
        if (at(a, x, y) !== at(b, x, y)) {
          const k = `${Math.floor(x / size)},${Math.floor(y / size)}`, t = tiles.get(k) || { n: 0, x: 0, y: 0 };
          t.n++; t.x += x; t.y += y;
          tiles.set(k, t);
        }
  }
  return [...tiles.values()].sort((a, b) => b.n - a.n).map((t) => ({ x: Math.round(t.x / t.n), y: Math.round(t.y / t.n), n: t.n }));
}
