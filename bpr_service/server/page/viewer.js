// The picture with its masks, before and after: moved, enlarged, split; and the zoom beside it.
import { $ } from "./api.js";
import { at, changes, paint } from "./masks.js";

export const COLOURS = [[24, 184, 201], [255, 202, 40], [240, 98, 146], [139, 195, 74], [186, 104, 200], [244, 132, 58], [92, 130, 240], [161, 136, 127]];
const LENS = 45; // side of the zoomed square, image px
const MOST = 40; // screen px of an image pixel, at most
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class Viewer {
  constructor() {
    Object.assign(this, { image: null, before: [], after: null, uncertain: [], focus: null, spots: [], spot: -1, chosen: -1, view: { s: 1, x: 0, y: 0 }, fingers: new Map() });
    $("split").addEventListener("input", () => this.split(+$("split").value));
    for (const id of ["fill", "outline"]) $(id).addEventListener("change", () => this.draw());
    const stage = $("stage");
    stage.addEventListener("pointermove", (e) => this.move(e));
    stage.addEventListener("pointerdown", (e) => this.down(e));
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (e) => { this.fingers.delete(e.pointerId); this.drag = null; });
    stage.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
    stage.addEventListener("dblclick", (e) => this.enlarge(this.view.s > 1 ? 0 : 3, ...this.on(e)));
    stage.addEventListener("keydown", (e) => this.key(e));
    $("next").addEventListener("click", () => this.next());
    $("closer").addEventListener("click", () => this.enlarge(1.5));
    $("farther").addEventListener("click", () => this.enlarge(1 / 1.5));
    $("fit").addEventListener("click", () => this.enlarge(0));
    new ResizeObserver(() => this.place()).observe(stage);
    addEventListener("resize", () => this.size());
  }

  show(image, before, after = null, uncertain = []) {
    const fresh = image !== this.image;
    Object.assign(this, { image, before, after, uncertain, chosen: -1 });
    const stage = $("stage");
    stage.classList.toggle("empty", !image);
    if (!image) return;
    this.size();
    for (const id of ["before", "after"]) { $(id).width = image.width; $(id).height = image.height; }
    const n = before.length, masks = `${n} mask${n === 1 ? "" : "s"}`;
    stage.setAttribute("aria-label", `Image of ${image.width} by ${image.height} pixels with ${masks}${after ? ", before and after" : ""}`);
    for (const id of ["controls", "stage-help", "zoom-panel", "changes-panel"]) $(id).hidden = n === 0;
    for (const id of ["handle", "label-before", "label-after"]) $(id).hidden = !after;
    $("unsure").hidden = !uncertain.some((boxes) => boxes.length);
    $("split").disabled = $("next").disabled = !after;
    this.spots = after ? changes(before.map((m, i) => [m, after[i]]), Math.round(LENS * 0.8)) : [];
    this.spot = -1;
    if (fresh) this.view = { s: 1, x: 0, y: 0 };
    this.split(after ? 50 : 100);
    this.draw();
    if (this.spots.length) this.next();
    else { const m = before[0]; this.look(m && m.w ? m.x + Math.round(m.w / 2) : image.width / 2, m && m.h ? m.y : image.height / 2); }
  }

  // As large as fits beside what must be seen with it.
  size() {
    if (!this.image) return;
    const tall = innerWidth > 900 ? innerHeight - 230 : innerHeight * 0.6;
    $("stage").style.maxWidth = `${Math.round((this.image.width / this.image.height) * Math.max(220, tall))}px`;
    $("stage").style.aspectRatio = `${this.image.width} / ${this.image.height}`;
  }

  split(percent) {
    $("split").value = percent;
    this.place();
  }

  draw() {
    if (!this.image) return;
    const thick = $("outline").checked ? Math.max(1, Math.round(this.image.width / 300)) : 0, alpha = $("fill").checked ? 110 : 0;
    for (const [id, masks] of [["before", this.before], ["after", this.after || this.before]]) {
      const pen = $(id).getContext("2d");
      pen.drawImage(this.image, 0, 0);
      masks.forEach((m, i) => {
        pen.globalAlpha = this.chosen < 0 || this.chosen === i ? 1 : 0.25;
        if (m.w) pen.drawImage(paint(m, COLOURS[i % COLOURS.length], alpha, thick), m.x, m.y);
      });
      pen.globalAlpha = 1;
    }
    this.mark();
    this.zoom();
  }

  // The places of which the network is not sure, on the refined side.
  mark() {
    const pen = $("after").getContext("2d"), unit = Math.max(1, this.image.width / 600);
    this.uncertain.forEach((boxes, i) => {
      if (this.chosen >= 0 && this.chosen !== i) return;
      for (const [colour, width] of [["#000", 3.5], ["#fff", 1.5]]) {
        pen.strokeStyle = colour; pen.lineWidth = width * unit;
        pen.setLineDash(colour === "#fff" ? [5 * unit, 4 * unit] : []);
        for (const box of boxes) pen.strokeRect(...box);
      }
    });
    pen.setLineDash([]);
  }

  // Where an event is: stage px, then image px.
  on(event) {
    const box = $("stage").getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
  under(x, y) {
    const scale = ($("stage").clientWidth / this.image.width) * this.view.s;
    return [(x - this.view.x) / scale, (y - this.view.y) / scale];
  }

  down(event) {
    if (!this.image) return;
    const [x, y] = this.on(event);
    this.fingers.set(event.pointerId, [x, y]);
    const line = (+$("split").value / 100) * $("stage").clientWidth, near = Math.abs(x - line) < 24;
    this.drag = this.after && (near || this.view.s === 1) ? "split" : "pan";
    if (event.pointerType !== "mouse" || this.view.s > 1 || near) $("stage").setPointerCapture(event.pointerId);
    if (event.pointerType === "touch") this.look(...this.under(x, y));
  }

  move(event) {
    if (!this.image || !this.before.length) return;
    const [x, y] = this.on(event), was = this.fingers.get(event.pointerId);
    if (was) {
      if (this.fingers.size === 2) this.pinch(event.pointerId, x, y);
      else if (this.drag === "split") this.split(clamp(Math.round((100 * x) / $("stage").clientWidth), 0, 100));
      else if (this.drag === "pan") this.pan(x - was[0], y - was[1]);
      this.fingers.set(event.pointerId, [x, y]);
    }
    if (event.pointerType !== "touch" && this.drag !== "pan") this.look(...this.under(x, y));
  }

  pinch(id, x, y) {
    const [other] = [...this.fingers].filter(([key]) => key !== id).map(([, at]) => at), was = this.fingers.get(id);
    const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    this.enlarge(far([x, y], other) / far(was, other), (x + other[0]) / 2, (y + other[1]) / 2);
  }

  wheel(event) {
    if (!this.image || (this.view.s === 1 && event.deltaY > 0)) return; // the page scrolls on
    event.preventDefault();
    this.enlarge(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...this.on(event));
  }

  // By a factor, around a point of the stage that stays where it is; 0: the whole picture.
  enlarge(factor, x = $("stage").clientWidth / 2, y = $("stage").clientHeight / 2) {
    if (!this.image) return;
    const s = factor ? clamp(this.view.s * factor, 1, (MOST * this.image.width) / $("stage").clientWidth) : 1, by = s / this.view.s;
    this.view = { s, x: x - by * (x - this.view.x), y: y - by * (y - this.view.y) };
    this.pan(0, 0);
  }

  pan(dx, dy) {
    const { clientWidth: w, clientHeight: h } = $("stage"), { s } = this.view;
    this.view = { s, x: clamp(this.view.x + dx, w * (1 - s), 0), y: clamp(this.view.y + dy, h * (1 - s), 0) };
    this.place();
  }

  key(event) {
    const step = event.shiftKey ? 40 : 8, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const zooms = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 };
    if (!this.image || !this.focus || !(moves[event.key] || event.key in zooms)) return;
    event.preventDefault();
    if (event.key in zooms) { this.enlarge(zooms[event.key]); return; }
    this.look(this.focus.x + moves[event.key][0], this.focus.y + moves[event.key][1]);
    this.seen();
  }

  next() {
    if (!this.spots.length) return;
    this.spot = (this.spot + 1) % this.spots.length;
    this.go(this.spots[this.spot]);
  }

  // To a mask: where it changed most, else its middle.
  choose(i) {
    this.chosen = this.chosen === i ? -1 : i;
    this.draw();
    const m = this.before[i], [unsure] = this.uncertain[i] || [], [most] = this.after ? changes([[m, this.after[i]]], Math.round(LENS * 0.8)) : [];
    if (this.chosen === i) this.go(unsure ? { x: unsure[0] + unsure[2] / 2, y: unsure[1] + unsure[3] / 2 } : most || { x: m.x + m.w / 2, y: m.y + m.h / 2 });
  }

  go({ x, y }) {
    this.look(x, y);
    this.seen();
  }

  // Brings the focus into what is shown of an enlarged picture.
  seen() {
    if (this.view.s === 1) return;
    const scale = ($("stage").clientWidth / this.image.width) * this.view.s, { clientWidth: w, clientHeight: h } = $("stage");
    this.view = { ...this.view, x: w / 2 - this.focus.x * scale, y: h / 2 - this.focus.y * scale };
    this.pan(0, 0);
  }

  look(x, y) {
    const { width, height } = this.image;
    this.focus = { x: clamp(Math.round(x), 0, width - 1), y: clamp(Math.round(y), 0, height - 1) };
    this.place();
    this.zoom();
  }

  // The planes, the line between before and after, and the square of the zoom, where they belong now.
  place() {
    const lens = $("lens"), stage = $("stage"), { s, x, y } = this.view, w = stage.clientWidth, line = (+$("split").value / 100) * w;
    $("plane").style.transform = `translate(${x}px, ${y}px) scale(${s})`;
    $("plane").classList.toggle("large", this.image && (w / this.image.width) * s > 3);
    stage.style.touchAction = s > 1 ? "none" : "pan-y";
    stage.style.setProperty("--split", `${line}px`);
    $("before").style.clipPath = `inset(0 ${100 - clamp((100 * (line - x)) / (s * w || 1), 0, 100)}% 0 0)`;
    $("farther").disabled = $("fit").disabled = s === 1;
    lens.hidden = !this.focus || !this.image || !this.before.length;
    if (lens.hidden) return;
    const scale = (w / this.image.width) * s, side = LENS * scale;
    Object.assign(lens.style, { width: `${side}px`, height: `${side}px`, left: `${x + this.focus.x * scale - side / 2}px`, top: `${y + this.focus.y * scale - side / 2}px` });
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
      for (const m of masks) {
        if (!m.w || m.x > x0 + LENS || m.y > y0 + LENS || m.x + m.w < x0 || m.y + m.h < y0) continue;
        for (let j = 0; j < LENS; j++)
          for (let i = 0; i < LENS; i++) {
            const here = at(m, x0 + i, y0 + j);
            if (here !== at(m, x0 + i + 1, y0 + j)) { pen.moveTo((i + 1) * s, j * s); pen.lineTo((i + 1) * s, (j + 1) * s); }
            if (here !== at(m, x0 + i, y0 + j + 1)) { pen.moveTo(i * s, (j + 1) * s); pen.lineTo((i + 1) * s, (j + 1) * s); }
          }
      }
      pen.lineCap = "square"; pen.lineWidth = 5; pen.strokeStyle = "#000a"; pen.stroke();
      pen.lineWidth = 2.5; pen.strokeStyle = colour; pen.stroke();
    };
    line(this.before, "#f4a83a");
    if (this.after) line(this.after, "#18d4e6");
  }
}
