// Mask files: what belongs to the image is taken out, and goes back into the file as it came.

const base = (path) => String(path).split(/[\\/]/).pop().toLowerCase();
const stem = (path) => base(path).replace(/\.[^.]*$/, "");

// The records of a mask file that belong to the image called `name`: [{ record, mask }], and the file itself.
export function open(text, file, name) {
  let data;
  try { data = JSON.parse(text); } catch { throw new Error(`${file} is not JSON.`); }
  const list = Array.isArray(data) ? data : data.masks || data.instances || data.annotations;
  if (!Array.isArray(list)) throw new Error(`${file} holds no list of masks.`);
  const own = list.filter((m) => m && typeof m === "object" && m.segmentation);
  const records = own.length ? own : list.map((m) => ({ segmentation: m }));
  return { file, data, bare: !own.length, records: ofImage(records, data.images, file, name) };
}

function ofImage(records, images, file, name) {
  const ids = new Set(records.map((m) => m.image_id).filter((id) => id !== undefined));
  if (ids.size < 2) return records;
  const listed = Array.isArray(images) ? images : [];
  const chosen = listed.filter((i) => base(i.file_name) === base(name));
  const found = chosen.length ? chosen : listed.filter((i) => stem(i.file_name) === stem(name));
  if (found.length === 1) return records.filter((m) => m.image_id === found[0].id);
  throw new Error(`${file} holds masks of ${ids.size} images, and ${listed.length ? `${found.length || "none"} of its images is called ${name}` : "does not name them"}. Choose the image first, or a file with its masks alone.`);
}

// Class names of a COCO file.
export const classes = (data) => new Map((data.categories || []).map((c) => [c.id, c.name]));

// The same file with the masks of the answer in their records; what was not refined stays as it came.
export function merged({ data, records, bare }, masks) {
  if (bare) return masks.map((m) => m.segmentation);
  const fresh = new Map(records.map((record, i) => [record, masks[i]]));
  const keep = ["segmentation", "bbox", "area"];
  const put = (record) => {
    const mask = fresh.get(record);
    if (!mask || mask.status !== "refined") return record;
    const changed = { ...record };
    for (const key of keep) if (key === "segmentation" || key in record) changed[key] = mask[key] ?? record[key];
    return changed;
  };
  if (Array.isArray(data)) return data.map(put);
  const key = ["masks", "instances", "annotations"].find((k) => Array.isArray(data[k]));
  return { ...data, [key]: data[key].map(put) };
}

// A PNG of two values is a mask; more are ids or classes, which this page does not guess.
export async function checkPng(file) {
  const picture = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(picture.width, picture.height), pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const pixels = new Uint32Array(pen.getImageData(0, 0, picture.width, picture.height).data.buffer), values = new Set();
  for (let i = 0; i < pixels.length && values.size < 3; i++) values.add(pixels[i]);
  if (values.size > 2) throw new Error(`${file.name} has more than two values. Instance ids, classes and soft masks are read by bpr refine --task labels, semantic or soft; here a mask is a picture of two values.`);
}
