// The player: loads, sorts and draws a scene, each in a place of its own, and says how it goes.

import { AutomaticQuality, QualityScale, SortingPace } from "./controls/quality.js";
import { Camera } from "./controls/camera.js";
import { Input } from "./controls/input.js";
import { Playhead } from "./controls/playhead.js";
import { blendAt, rowsFor } from "./drawing/levels.js";
import { Renderer } from "./drawing/renderer.js";
import { Film } from "./film.js";
import { placeWidth } from "./loading/row_layout.js";

const MOST_PIXELS_A_POINT = 2; // of the screen's own pixels, drawn for one of the page's
const AUTOMATIC_START = 5000; // Gaussians
const AHEAD = 2; // automatic quality loads this many times what it draws
const LONGEST_FRAME = 3000; // milliseconds beyond which the page was not shown
const NEAR = 0.01; // depth of the nearest that is drawn, where scene.json says none
const LITTLE_TIME = 1 / 60; // of a group, over which speeds are measured
const MARGIN = 1e-3; // of a group, by which an order knows of more lives than the moment's

export class Player extends EventTarget {
  /**
   * `description` is scene.json. Events: `header`, `change` (what is loaded or drawn has changed), `move` (the camera
   * has), `time` (the playhead has), `connection` and `error` with details.
   */
  constructor(canvas, description, base) {
    super();
    this.canvas = canvas;
    this.description = description;
    this.near = description.near ?? NEAR;
    this.renderer = new Renderer(canvas, this.near);
    this.camera = new Camera(description.up, description.unit);
    this.camera.take(description.start, description.focus);
    this.input = new Input(canvas, this.camera, () => this.moved());
    this.playhead = new Playhead();
    this.mode = "colours"; // or "depth", or "motion"
    this.share = 1; // chosen by hand
    this.automatic = null; // or by the frame rate
    this.pace = new SortingPace();
    this.latency = 0; // milliseconds from asking for an order to having it
    this.bytes = 0;
    this.finished = false; // whether nothing more is to come
    this.shown = 0; // the group that is drawn
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
    this.film = new Film(header);
    const { total, ends, seconds, frames, moves } = this.film;
    this.header = { ...header, total, ends };
    this.scale = new QualityScale(total, ends);
    const { time, playing } = this.playhead; // of a link
    this.playhead = Object.assign(new Playhead({ seconds, frames }), { time, playing });
    if (!moves && this.mode === "motion") this.mode = "colours";
    this.renderer.open(header);
    if (this.automatic) this.setAutomatic(1000 / this.automatic.goal);
    else this.want();
    this.tell("header");
    this.tell("time");
  }

  /** The first chunk of a group has come: make room for it. */
  openGroup(index, head) {
    const group = Object.assign(this.film.groups[index], head);
    group.held = this.renderer.openGroup(index, group);
    const rows = rowsFor(group.available, group.counts);
    const { motion } = head;
    this.sorter.postMessage({ group: index, rows, width: placeWidth(motion), motion, near: this.near });
    if (group.held === group.available) return;
    if (this.automatic) this.automatic.total = Math.min(this.automatic.total, this.room);
    this.want();
    const words = `This device's graphics hold ${group.held.toLocaleString("en")} of the scene's Gaussians.`;
    this.tell("error", { words });
  }

  add(chunk) {
    if (chunk.head) this.openGroup(chunk.group, chunk.head);
    const group = this.film.groups[chunk.group];
    this.resting = false;
    this.bytes = chunk.bytes;
    this.decoding = chunk.decoding;
    this.received = chunk.received;
    if (chunk.stop > group.held) return;
    const textures = this.renderer.groups[chunk.group];
    textures.add(chunk);
    const row = textures.bases[chunk.level] + chunk.first;
    this.sorter.postMessage({ group: chunk.group, places: chunk.places, row }, [chunk.places.buffer]);
    group.loaded = chunk.stop;
    this.needSort();
  }

  /** Gaussians that are loaded of the group that is shown. */
  get loaded() {
    return this.film?.groups[this.shown].loaded ?? 0;
  }

  /** Gaussians that this device's textures hold. */
  get room() {
    return this.film ? Math.floor(this.film.room * this.film.total * (1 + 1e-12)) : Infinity;
  }

  // What to draw.

  /** Gaussians that are to be drawn, of the largest group. */
  get wanted() {
    if (this.automatic) return this.automatic.count;
    return this.scale ? this.scale.count(this.share) : 0;
  }

  /** Gaussians of a group that are to be drawn. */
  wantedOf(index) {
    return this.film.countIn(index, this.automatic ? this.automatic.count / this.film.total : this.share);
  }

  /** Those of them that can be drawn now: that are there, and can be sorted in time. */
  countOf(index) {
    const limit = this.playhead.playing && !this.automatic ? this.pace.most : Infinity;
    return Math.min(this.wantedOf(index), this.film.groups[index].loaded, limit);
  }

  setShare(share) {
    this.automatic = null;
    this.share = Math.min(Math.max(share, this.scale?.smallest ?? 0), 1);
    this.want();
  }

  /** Hold a frame rate by changing the count, from about what is drawn now. */
  setAutomatic(framesPerSecond) {
    const start = Math.max(AUTOMATIC_START, this.drawn.count);
    const most = Math.min(this.room, this.film?.total ?? Infinity);
    this.automatic = new AutomaticQuality(framesPerSecond, most, start);
    this.want();
  }

  setMode(mode) {
    this.mode = mode === "motion" && this.film && !this.film.moves ? "colours" : mode;
    this.needSort();
    this.tell("change");
  }

  /** Have loaded what is to be drawn, of the group at the playhead first. */
  want() {
    if (this.film) {
      const needed = this.automatic ? (AHEAD * this.automatic.count) / this.film.total : this.share;
      this.needed = Math.min(needed, this.film.room);
      this.loader.postMessage({ wanted: this.needed, playhead: this.film.at(this.playhead.time) });
    }
    this.needSort();
    this.tell("change");
  }

  moved() {
    this.needSort();
    this.tell("move");
  }

  // Time.

  /** Change the playhead: `(playhead) => playhead.step(1)`, say. */
  turn(change) {
    const before = this.film?.at(this.playhead.time);
    change(this.playhead);
    this.early = undefined;
    this.needSort();
    if (this.film && this.film.at(this.playhead.time) !== before) this.want();
    this.tell("time");
  }

  /** Let time go on, unless what comes next has not been loaded at all. */
  play(seconds) {
    const [time] = this.playhead.after(seconds);
    const { loaded } = this.film.groups[this.film.at(time)];
    const waiting = loaded === 0 && !this.finished;
    if (waiting !== Boolean(this.waiting)) this.tell("time");
    this.waiting = waiting;
    if (waiting) return;
    const before = this.playhead.time;
    const { early } = this;
    this.turn((playhead) => playhead.advance(seconds));
    if (!early) return;
    if ((this.playhead.time - before) * this.playhead.speed < 0) this.use(early);
    else this.early = early;
  }

  // Sorting.

  needSort() {
    this.asked++;
    this.dirty = true;
  }

  sort() {
    if (this.sent > this.answered || this.answered === this.asked || this.early) return;
    const { film, spare, playhead } = this;
    const [time] = playhead.after(this.latency / 1000); // when the order will be used
    const index = film.at(time);
    const count = this.countOf(index);
    if (count === 0) {
      if (this.finished) this.answered = this.sent = this.asked; // this group is not to be had
      return;
    }
    this.sent = this.asked;
    this.sentAt = performance.now();
    this.sentTime = time;
    this.sentWanted = count === this.wantedOf(index) ? this.wanted : 0;
    const { rotation, position } = this.camera;
    const axis = rotation.slice(6, 9);
    axis.push(-axis.reduce((sum, value, k) => sum + value * position[k], 0));
    const blend = blendAt(count, film.groups[index]);
    const request = { group: index, axis, count, blend, ticket: this.sent, order: spare };
    if (film.moves) Object.assign(request, { moment: film.within(index, time), around: this.around(index) });
    this.spare = undefined;
    this.sorter.postMessage(request, spare ? [spare.buffer] : []);
  }

  /** Of a group's time, how far from the moment that is sorted for an order may be used. */
  around(index) {
    const { playing, speed, seconds } = this.playhead;
    const late = playing ? (2 * this.latency * Math.abs(speed)) / (1000 * seconds * this.film.span(index)) : 0;
    return MARGIN + late;
  }

  onSorted(found) {
    this.answered = found.ticket;
    const passed = performance.now() - this.sentAt;
    this.latency = this.latency ? 0.7 * this.latency + 0.3 * passed : passed;
    const { playing, time, speed } = this.playhead;
    const again = playing && found.group === this.film.at(time) && (this.sentTime - time) * speed < 0;
    if (again && this.renderer.groups[found.group].blend) this.early = found; // of the film's other end
    else this.use(found);
  }

  /** Draw in an order that was found. */
  use({ group, order, visible, count, blend, nearness, milliseconds }) {
    this.early = undefined;
    this.renderer.groups[group].setOrder(order, visible, blend, nearness);
    const changed = count !== this.drawn.count;
    this.drawn = { count, visible, sorting: milliseconds, wanted: this.sentWanted };
    if (this.playhead.playing) this.pace.learn(count, milliseconds);
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
    const { playing } = this.playhead;
    if (playing && passed < LONGEST_FRAME) this.play(passed / 1000);
    this.sort();
    if ((this.busy || (playing && this.automatic)) && this.drewLast && passed < LONGEST_FRAME) this.learn(passed);
    this.drewLast = this.dirty || this.busy;
    if (this.drewLast) this.draw();
  }

  /** Whether frames follow each other without a rest: the count is being found. */
  get busy() {
    return this.automatic !== null && (!this.automatic.settled || this.dirty) && this.drawn.count > 0;
  }

  learn(milliseconds) {
    const { automatic } = this;
    const slower = this.playhead.playing ? SortingPace.asFrame(this.drawn.sorting, automatic.goal) : 0;
    if (automatic.frame(Math.max(milliseconds, slower), this.drawn.wanted)) this.want();
    if (this.finished && this.wantedOf(this.shown) > this.loaded) automatic.settled = true; // more is not to be had
    if (automatic.settled) this.tell("change");
  }

  draw() {
    if (!this.header) return;
    this.dirty = false;
    const { renderer, film, playhead, canvas, camera, mode } = this;
    const now = film.at(playhead.time);
    if (renderer.groups[now]?.blend) this.shown = now; // until it is sorted, the group before stays
    const moment = film.within(this.shown, playhead.time);
    const other = moment + (moment + LITTLE_TIME <= 1 ? LITTLE_TIME : -LITTLE_TIME);
    const pace = 1 / (LITTLE_TIME * playhead.seconds * film.span(this.shown) * this.description.unit);
    const lens = camera.lensFor(canvas.width, canvas.height);
    const { rotation, position } = camera;
    renderer.draw(renderer.groups[this.shown], { rotation, position, lens }, { mode, moments: [moment, other], pace });
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

  /** Whether everything wanted is loaded, sorted and drawn, and nothing plays. */
  get settled() {
    const { film } = this;
    const loaded = this.resting && film.progress(this.needed) >= 1;
    const there = this.finished || loaded || film?.groups.every((group) => group.loaded === group.held);
    const still = !this.playhead.playing && this.answered === this.asked;
    return Boolean(there) && still && !this.dirty && !this.busy;
  }

  /** The canvas as a PNG. */
  picture() {
    this.draw(); // what was drawn in an earlier frame is not kept
    return this.canvas.toDataURL("image/png");
  }
}
