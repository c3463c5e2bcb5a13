// The player: loads, sorts and draws a scene, each in a place of its own, and says how it goes.

import { AutomaticQuality, QualityScale } from "./controls/quality.js";
import { Camera } from "./controls/camera.js";
import { Input } from "./controls/input.js";
import { blendAt, rowsFor } from "./drawing/levels.js";
import { Renderer } from "./drawing/renderer.js";

const MOST_PIXELS_A_POINT = 2; // of the screen's own pixels, drawn for one of the page's
const AUTOMATIC_START = 5000; // Gaussians
const AHEAD = 2; // automatic quality loads this many times what it draws
const LONGEST_FRAME = 3000; // milliseconds beyond which the page was not shown

export class Player extends EventTarget {
  /**
   * `description` is scene.json. Events: `header`, `change` (what is loaded or drawn has changed), `move` (the camera
   * has), `connection` and `error` with details.
   */
  constructor(canvas, description, base) {
    super();
    this.canvas = canvas;
    this.description = description;
    this.renderer = new Renderer(canvas);
    this.camera = new Camera(description.up, description.unit);
    this.camera.take(description.start, description.focus);
    this.input = new Input(canvas, this.camera, () => this.moved());
    this.share = 1; // chosen by hand
    this.automatic = null; // or by the frame rate
    this.loaded = 0;
    this.bytes = 0;
    this.finished = false; // whether nothing more is to come
    this.drawn = { count: 0, visible: 0 };
    this.asked = 0; // tickets of sorts: the last one that was needed, sent, and answered
    this.sent = this.answered = 0;
    this.dirty = true; // whether the canvas is behind what is at hand
    this.loader = this.worker("loading/loader.worker.js", (data) => this.onLoader(data));
    this.sorter = this.worker("drawing/sorter.worker.js", (data) => this.onSorted(data));
    this.loader.postMessage({ url: new URL(description.file, base).href });
    this.watchCanvas();
    requestAnimationFrame((now) => this.frame(now));
  }

  worker(path, receive) {
    const worker = new Worker(new URL(path, import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => receive(data);
    worker.onerror = (event) => this.tell("error", { words: `A part of the player has failed. ${event.message ?? ""}` });
    return worker;
  }

  tell(name, detail = {}) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // Loading.

  onLoader(data) {
    if (data.kind === "header") this.open(data.header);
    else if (data.kind === "chunk") this.add(data);
    else if (data.kind === "connection") this.tell("connection", data);
    else if (data.kind === "error") this.tell("error", data);
    else if (data.kind === "rest") this.resting = true;
    if (data.kind === "done" || data.failed) this.finished = true;
    this.tell("change");
  }

  open(header) {
    this.header = header;
    this.scale = new QualityScale(header.total, header.ends);
    this.capacity = this.renderer.open(header);
    this.sorter.postMessage({ rows: rowsFor(header.available, header.counts) });
    if (this.automatic) this.setAutomatic(1000 / this.automatic.goal);
    else this.want();
    if (this.capacity < header.available) {
      const words = `This device's graphics hold ${this.capacity.toLocaleString()} of the scene's Gaussians.`;
      this.tell("error", { words });
    }
    this.tell("header");
  }

  add(chunk) {
    if (chunk.stop > this.capacity) return;
    this.resting = false;
    this.renderer.add(chunk);
    const row = this.renderer.bases[chunk.level] + chunk.first;
    this.sorter.postMessage({ means: chunk.means, row }, [chunk.means.buffer]);
    this.loaded = chunk.stop;
    this.bytes = chunk.bytes;
    this.decoding = chunk.decoding;
    this.received = chunk.received;
    this.needSort();
  }

  // What to draw.

  /** Gaussians that are to be drawn, as far as they are there. */
  get count() {
    return Math.min(this.wanted, this.loaded);
  }

  get wanted() {
    if (this.automatic) return this.automatic.count;
    return this.scale ? this.scale.count(this.share) : 0;
  }

  setShare(share) {
    this.automatic = null;
    this.share = Math.min(Math.max(share, this.scale?.smallest ?? 0), 1);
    this.want();
  }

  /** Hold a frame rate by changing the count, from about what is drawn now. */
  setAutomatic(framesPerSecond) {
    const start = Math.max(AUTOMATIC_START, this.drawn.count);
    this.automatic = new AutomaticQuality(framesPerSecond, this.capacity ?? Infinity, start);
    this.want();
  }

  /** Have loaded what is to be drawn. */
  want() {
    const needed = this.automatic ? AHEAD * this.automatic.count : this.wanted;
    this.needed = Math.min(needed, this.capacity ?? Infinity);
    if (this.header) this.loader.postMessage({ wanted: this.needed });
    this.needSort();
    this.tell("change");
  }

  moved() {
    this.needSort();
    this.tell("move");
  }

  // Sorting.

  needSort() {
    this.asked++;
    this.dirty = true;
  }

  sort() {
    if (this.sent > this.answered || this.answered === this.asked || this.count === 0) return;
    this.sent = this.asked;
    const { rotation, position } = this.camera;
    const axis = rotation.slice(6, 9);
    axis.push(-axis.reduce((sum, value, k) => sum + value * position[k], 0));
    const { count, spare } = this;
    const blend = blendAt(count, this.header);
    this.spare = undefined;
    this.sorter.postMessage({ axis, count, blend, ticket: this.sent, order: spare }, spare ? [spare.buffer] : []);
  }

  onSorted({ order, visible, count, blend, ticket, milliseconds }) {
    this.answered = ticket;
    this.renderer.setOrder(order, visible, blend);
    const changed = count !== this.drawn.count;
    this.drawn = { count, visible, sorting: milliseconds };
    this.spare = order;
    this.dirty = true;
    this.sort();
    if (changed) this.tell("change");
  }

  // Drawing.

  frame(now) {
    requestAnimationFrame((next) => this.frame(next));
    const passed = now - (this.lastFrame ?? now);
    this.lastFrame = now;
    if (this.input.busy) this.input.pass(Math.min(passed, 100) / 1000);
    if (!this.header || this.paused) return;
    this.sort();
    if (this.busy && this.drewLast && passed < LONGEST_FRAME) this.learn(passed);
    this.drewLast = this.dirty || this.busy;
    if (this.drewLast) this.draw();
  }

  /** Whether frames follow each other without a rest: the count is being found. */
  get busy() {
    return this.automatic !== null && (!this.automatic.settled || this.dirty) && this.drawn.count > 0;
  }

  learn(milliseconds) {
    const { automatic } = this;
    if (automatic.frame(milliseconds, this.drawn.count)) this.want();
    if (this.finished && automatic.count > this.loaded) automatic.settled = true; // more is not to be had
    if (automatic.settled) this.tell("change");
  }

  draw() {
    if (!this.header) return;
    this.dirty = false;
    const { rotation, position } = this.camera;
    this.renderer.draw({ rotation, position, lens: this.camera.lensFor(this.canvas.width, this.canvas.height) });
    if (this.firstPicture === undefined && this.drawn.visible > 0) this.firstPicture = performance.now();
  }

  /** Keep the canvas at the size that it has on the page. */
  watchCanvas() {
    const fit = () => {
      const density = Math.min(devicePixelRatio || 1, MOST_PIXELS_A_POINT);
      const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
      this.canvas.width = Math.max(1, Math.round(width * density));
      this.canvas.height = Math.max(1, Math.round(height * density));
      this.dirty = true;
      this.draw(); // a canvas is empty after its size has changed
      this.tell("move");
    };
    new ResizeObserver(fit).observe(this.canvas);
    fit();
  }

  /** Whether everything wanted is loaded, sorted and drawn. */
  get settled() {
    const there = this.finished || (this.resting && this.loaded >= this.needed) || this.loaded === this.capacity;
    return Boolean(there) && this.answered === this.asked && !this.dirty && !this.busy;
  }

  /** The canvas as a PNG. */
  picture() {
    this.draw(); // what was drawn in an earlier frame is not kept
    return this.canvas.toDataURL("image/png");
  }
}
