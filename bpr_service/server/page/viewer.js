// The picture with its masks, before and after, and the zoom on the boundary.
import { at, changes, paint } from "./masks.js";

const $ = (id) => document.getElementById(id);
export const COLOURS = [[24, 184, 201], [244, 132, 58], [139, 195, 74], [186, 104, 200], [255, 202, 40], [240, 98, 146], [92, 130, 240], [161, 136, 127]];
const LENS = 45; // side of the zoomed square, image px

export class Viewer {
  constructor() {
    this.image = null; this.before = []; this.after = null; this.focus = null; this.spots = []; this.spot = -1;
    $("split").addEventListener("input", () => this.split(+$("split").value));
    for (const id of ["fill", "outline"]) $(id).addEventListener("change", () => this.draw());
    const stage = $("stage");
    stage.addEventListener("pointermove", (e) => this.point(e));
    stage.addEventListener("pointerdown", (e) => { if (this.after) { this.dragging = true; stage.setPointerCapture(e.pointerId); this.point(e); } });
    stage.addEventListener("pointerup", () => { this.dragging = false; });
    stage.addEventListener("pointercancel", () => { this.dragging = false; });
    stage.addEventListener("keydown", (e) => this.key(e));
    $("next").addEventListener("click", () => this.next());
    new ResizeObserver(() => this.place()).observe(stage);
  }

  show(image, before, after = null) {
    this.image = image; this.before = before; this.after = after;
    const stage = $("stage");
    stage.classList.toggle("empty", !image);
    if (!image) return;
    stage.style.maxWidth = `${Math.round((image.width / image.height) * Math.max(360, innerHeight * 0.74))}px`;
    for (const id of ["before", "after"]) { $(id).width = image.width; $(id).height = image.height; }
    const n = before.length, masks = `${n} mask${n === 1 ? "" : "s"}`;
    stage.setAttribute("aria-label", `Image of ${image.width} by ${image.height} pixels with ${masks}${after ? ", before and after" : ""}`);
    for (const id of ["controls", "stage-help", "details"]) $(id).hidden = n === 0;
    for (const id of ["handle", "label-before", "label-after"]) $(id).hidden = !after;
    $("split").disabled = !after;
    $("next").disabled = !after;
    this.spots = after ? changes(before.map((m, i) => [m, after[i]]), Math.round(LENS * 0.8)) : [];
    this.spot = -1;
    this.split(after ? 50 : 100);
    this.draw();
    if (this.spots.length) this.next();
    else { const m = before[0]; this.look(m && m.w ? m.x + Math.round(m.w / 2) : image.width / 2, m && m.h ? m.y : image.height / 2); }
  }

  split(percent) {
    $("split").value = percent;
    $("stage").style.setProperty("--split", `${percent}%`);
  }

  draw() {
    if (!this.image) return;
    const thick = $("outline").checked ? Math.max(1, Math.round(this.image.width / 500)) : 0, alpha = $("fill").checked ? 110 : 0;
    const layers = [["before", this.before], ["after", this.after || this.before]];
    for (const [id, masks] of layers) {
      const pen = $(id).getContext("2d");
      pen.drawImage(this.image, 0, 0);
      masks.forEach((m, i) => { if (m.w) pen.drawImage(paint(m, COLOURS[i % COLOURS.length], alpha, thick), m.x, m.y); });
    }
    this.zoom();
  }

  point(event) {
    if (!this.image || !this.before.length) return;
    const box = $("stage").getBoundingClientRect(), u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
    if (this.dragging && this.after) this.split(Math.round(100 * Math.min(1, Math.max(0, u))));
    if (!this.dragging && event.pointerType === "touch") return;
    this.look(u * this.image.width, v * this.image.height);
  }

  key(event) {
    const step = event.shiftKey ? 40 : 8, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (!this.image || !this.focus || !moves[event.key]) return;
    event.preventDefault();
    this.look(this.focus.x + moves[event.key][0], this.focus.y + moves[event.key][1]);
  }

  next() {
    if (!this.spots.length) return;
    this.spot = (this.spot + 1) % this.spots.length;
    this.look(this.spots[this.spot].x, this.spots[this.spot].y);
  }

  look(x, y) {
    const { width, height } = this.image, clamp = (v, top) => Math.round(Math.min(Math.max(v, 0), top - 1));
    this.focus = { x: clamp(x, width), y: clamp(y, height) };
    this.place();
    this.zoom();
  }

  place() {
    const lens = $("lens");
    lens.hidden = !this.focus || !this.image || !this.before.length;
    if (lens.hidden) return;
    const scale = $("stage").clientWidth / this.image.width, side = LENS * scale;
    Object.assign(lens.style, { width: `${side}px`, height: `${side}px`, left: `${this.focus.x * scale - side / 2}px`, top: `${this.focus.y * scale - side / 2}px` });
  }

  zoom() {
    if (!this.focus || !this.image) return;
    const canvas = $("zoom"), pen = canvas.getContext("2d"), s = canvas.width / LENS, half = Math.floor(LENS / 2);
    const x0 = this.focus.x - half, y0 = this.focus.y - half;
    pen.imageSmoothingEnabled = false;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(this.image, x0, y0, LENS, LENS, 0, 0, canvas.width, canvas.height);
    const line = (masks, colour) => {
      pen.beginPath();
      for (const m of masks)
        for (let j = 0; j < LENS; j++)
          for (let i = 0; i < LENS; i++) {
            const here = at(m, x0 + i, y0 + j);
            if (here !== at(m, x0 + i + 1, y0 + j)) { pen.moveTo((i + 1) * s, j * s); pen.lineTo((i + 1) * s, (j + 1) * s); }
            if (here !== at(m, x0 + i, y0 + j + 1)) { pen.moveTo(i * s, (j + 1) * s); pen.lineTo((i + 1) * s, (j + 1) * s); }
          }
      pen.lineCap = "square"; pen.lineWidth = 5; pen.strokeStyle = "#000a"; pen.stroke();
      pen.lineWidth = 2.5; pen.strokeStyle = colour; pen.stroke();
    };
    line(this.before, "#f4a83a");
    if (this.after) line(this.after, "#18d4e6");
  }
}
