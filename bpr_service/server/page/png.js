// PNGs of ids: their values as they are stored, which no canvas gives, and written back in the same form.

const HEAD = [137, 80, 78, 71, 13, 10, 26, 10];
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };

const through = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

function chunksOf(bytes) {
  if (HEAD.some((b, i) => bytes[i] !== b)) throw new Error("A map of ids is a PNG.");
  const view = new DataView(bytes.buffer, bytes.byteOffset), found = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at), name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    found.push([name, bytes.subarray(at + 8, at + 8 + length)]);
    at += 12 + length;
  }
  return found;
}

// One byte less than before at a time: the five filters of the format.
function unfilter(data, stride, height, step) {
  const out = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    const kind = data[y * (stride + 1)], row = y * stride, from = y * (stride + 1) + 1;
    for (let x = 0; x < stride; x++) {
      const a = x >= step ? out[row + x - step] : 0, b = y ? out[row - stride + x] : 0, c = x >= step && y ? out[row - stride + x - step] : 0;
      let guess = 0;
      if (kind === 1) guess = a;
      else if (kind === 2) guess = b;
      else if (kind === 3) guess = (a + b) >> 1;
      else if (kind === 4) { const p = a + b - c, pa = Math.abs(p - a), pb = Math.abs(p - b), pc = Math.abs(p - c); guess = pa <= pb && pa <= pc ? a : pb <= pc ? b : c; }
      out[row + x] = data[from + x] + guess;
    }
  }
  return out;
}

function unpack(rows, width, height, depth) {
  const stride = Math.ceil((width * depth) / 8), out = new Uint8Array(width * height), top = (1 << depth) - 1;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) out[y * width + x] = (rows[y * stride + ((x * depth) >> 3)] >> (8 - depth - ((x * depth) & 7))) & top;
  return out;
}

// { width, height, depth, type, palette, rows, step, ids }: `rows` as stored, `step` bytes a pixel; `ids` as COCO panoptic has them in RGB.
export async function readIds(bytes) {
  const chunks = chunksOf(bytes), head = chunks[0][1], view = new DataView(head.buffer, head.byteOffset);
  const width = view.getUint32(0), height = view.getUint32(4), type = head[9];
  let depth = head[8];
  if (head[12]) throw new Error("Save the map of ids without interlacing.");
  if (type > 3 || (depth < 8 && type !== 3)) throw new Error("A map of ids is gray of 8 or 16 bits, a palette, or RGB.");
  const packed = new Uint8Array(chunks.filter(([n]) => n === "IDAT").reduce((s, [, d]) => s + d.length, 0));
  let at = 0;
  for (const [name, data] of chunks) if (name === "IDAT") { packed.set(data, at); at += data.length; }
  const step = Math.max((CHANNELS[type] * depth) / 8, 1), stride = Math.ceil((width * CHANNELS[type] * depth) / 8);
  let rows = unfilter(await through(packed, new DecompressionStream("deflate")), stride, height, step);
  if (depth < 8) { rows = unpack(rows, width, height, depth); depth = 8; }
  const ids = new Uint32Array(width * height);
  for (let i = 0, p = 0; i < ids.length; i++, p += step) ids[i] = type === 2 ? rows[p] + 256 * rows[p + 1] + 65536 * rows[p + 2] : step === 2 ? 256 * rows[p] + rows[p + 1] : rows[p];
  return { width, height, depth, type, step, rows, ids, palette: chunks.filter(([n]) => n === "PLTE" || n === "tRNS") };
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => { for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1; return n; });

function chunk(name, data) {
  const out = new Uint8Array(data.length + 12), view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) out[4 + i] = name.charCodeAt(i);
  out.set(data, 8);
  let crc = -1;
  for (let i = 4; i < out.length - 4; i++) crc = TABLE[(crc ^ out[i]) & 255] ^ (crc >>> 8);
  view.setUint32(out.length - 4, ~crc);
  return out;
}

export async function writeIds({ width, height, depth, type, step, palette }, rows) {
  const head = new Uint8Array(13), view = new DataView(head.buffer), stride = width * step, lines = new Uint8Array((stride + 1) * height);
  view.setUint32(0, width); view.setUint32(4, height);
  head[8] = depth; head[9] = type;
  for (let y = 0; y < height; y++) lines.set(rows.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
  const data = await through(lines, new CompressionStream("deflate"));
  return new Blob([Uint8Array.from(HEAD), chunk("IHDR", head), ...palette.map(([name, bytes]) => chunk(name, bytes)), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))], { type: "image/png" });
}

// The refined map, with every pixel that a rejected id had or has as it was.
export async function withoutRejected(before, after, rejected) {
  if (before.step !== after.step || before.type !== after.type) throw new Error("The two maps are of different kinds.");
  const rows = after.rows.slice(), ids = after.ids.slice();
  for (let i = 0; i < ids.length; i++)
    if (rejected.has(before.ids[i]) || rejected.has(after.ids[i])) {
      ids[i] = before.ids[i];
      rows.set(before.rows.subarray(i * before.step, (i + 1) * before.step), i * before.step);
    }
  return { blob: await writeIds(before, rows), ids };
}

// Each id as a mask { x, y, w, h, bits }.
export function masksOf({ ids, width }) {
  const found = new Map();
  for (let i = 0; i < ids.length; i++) {
    const x = i % width, y = (i - x) / width;
    let m = found.get(ids[i]);
    if (!m) found.set(ids[i], (m = { x0: x, y0: y, x1: x, y1: y, n: 0 }));
    if (x < m.x0) m.x0 = x;
    if (x > m.x1) m.x1 = x;
    m.y1 = y; m.n++;
  }
  for (const m of found.values()) Object.assign(m, { x: m.x0, y: m.y0, w: m.x1 - m.x0 + 1, h: m.y1 - m.y0 + 1, bits: new Uint8Array((m.x1 - m.x0 + 1) * (m.y1 - m.y0 + 1)) });
  for (let i = 0; i < ids.length; i++) {
    const m = found.get(ids[i]), x = i % width, y = (i - x) / width;
    m.bits[(y - m.y) * m.w + x - m.x] = 1;
  }
  return found;
}
