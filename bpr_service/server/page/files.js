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

// Whether a picture has two values at most.
export async function isMask(file) {
  const picture = await createImageBitmap(file);
  const canvas = new OffscreenCanvas(picture.width, picture.height), pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const pixels = new Uint32Array(pen.getImageData(0, 0, picture.width, picture.height).data.buffer), values = new Set();
  for (let i = 0; i < pixels.length && values.size < 3; i++) values.add(pixels[i]);
  return values.size < 3;
}

export async function checkMask(file) {
  if (!(await isMask(file))) throw new Error(`${file.name} has more than two values. Say what it holds under “The masks are”: instance ids, classes, panoptic segments or soft masks.`);
}

// Where a JPEG says which way up it is (EXIF's orientation): { at, little } of the tag's value, or null.
function orientationOf(view) {
  if (view.byteLength < 4 || view.getUint16(0) !== 0xffd8) return null;
  for (let at = 2; at + 10 < view.byteLength && view.getUint8(at) === 0xff && view.getUint8(at + 1) !== 0xda; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint8(at + 1) !== 0xe1 || view.getUint32(at + 4) !== 0x45786966) continue;
    const base = at + 10, little = view.getUint16(base) === 0x4949, list = base + view.getUint32(base + 4, little), count = view.getUint16(list, little);
    for (let i = 0; i < count; i++) if (view.getUint16(list + 2 + 12 * i, little) === 0x0112) return { at: list + 10 + 12 * i, little };
  }
  return null;
}

// The two ways in which a photograph can be shown: { upright, stored }, the same picture where it is not turned.
export async function pictures(file) {
  const upright = await createImageBitmap(file), view = new DataView(await file.arrayBuffer());
  try {
    const tag = orientationOf(view);
    if (tag && view.getUint16(tag.at, tag.little) > 1) {
      view.setUint16(tag.at, 1, tag.little);
      return { upright, stored: await createImageBitmap(new Blob([view.buffer], { type: file.type })) };
    }
  } catch { /* damaged EXIF says nothing */ }
  return { upright, stored: upright };
}

// The segments of a COCO panoptic file, or of one image.
export function segmentsOf(text, file, image) {
  let data;
  try { data = JSON.parse(text); } catch { throw new Error(`${file} is not JSON.`); }
  const entries = data.annotations?.filter((a) => a.segments_info) || [], mine = entries.filter((a) => stem(a.file_name) === stem(image));
  const found = Array.isArray(data) ? data : data.segments_info || (mine.length === 1 || entries.length === 1 ? (mine[0] || entries[0]).segments_info : null);
  if (!found) throw new Error(`${file} holds no segments_info of ${image}.`);
  return found;
}
