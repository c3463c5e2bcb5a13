// Where the camera is sent: the first view, the test views, and what the page's address says.

import { readLink, writeLink } from "./controls/link.js";

const ON_PHONES = 30; // frames a second that devices of fingers hold, unless a link says otherwise
const WRITE_AFTER = 400; // milliseconds without a movement after which the address follows

export class Places {
  constructor(player) {
    this.player = player;
    this.view = undefined; // the test view that is visited
    this.lens = undefined; // the view whose lens a free camera has
    this.written = null;
    this.go(location.hash);
    player.addEventListener("header", () => this.arrive());
    for (const name of ["move", "time"]) player.addEventListener(name, () => this.leave());
    addEventListener("hashchange", () => location.hash !== this.written && this.go(location.hash));
  }

  /** Stand where a test view was taken. */
  visit(index) {
    const { camera, description } = this.player;
    const view = description.views[index];
    if (!view) return;
    camera.take(view, description.focus);
    if (view.time !== undefined) this.stand(view.time);
    this.hold(index, index);
  }

  /** Stand where the player began. */
  start() {
    const { camera, description } = this.player;
    camera.take(description.start, description.focus);
    this.hold(undefined, undefined);
  }

  /** Stop at a time, from 0 to 1. */
  stand(time) {
    this.player.turn((playhead) => {
      playhead.playing = false;
      playhead.seek(time);
    });
  }

  hold(view, lens) {
    this.view = view;
    this.lens = lens;
    this.held = this.here;
    this.player.moved();
  }

  /** Where camera and playhead are; a view that was not taken at a time is one of all times. */
  get here() {
    const { camera, description, playhead } = this.player;
    const timed = description.views[this.view]?.time !== undefined;
    return JSON.stringify([camera.state, timed ? playhead.time : 0]);
  }

  /** After a movement: a view that camera or playhead have left is no longer visited. */
  leave() {
    if (this.view !== undefined && this.here !== this.held) this.view = undefined;
    if (!this.player.playhead.playing) this.tell();
  }

  /** Let the address follow soon. */
  tell() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.write(), WRITE_AFTER);
  }

  write() {
    const { camera, share, automatic, film, playhead, mode } = this.player;
    const { position, quaternion, reach } = camera;
    const fps = automatic ? Math.round(1000 / automatic.goal) : undefined;
    const timed = this.player.description.views[this.view]?.time !== undefined;
    const time = film?.moves && !timed ? playhead.time * playhead.seconds : undefined;
    this.written = writeLink({ view: this.view, position, quaternion, reach, lens: this.lens, share, fps, time, mode });
    history.replaceState(null, "", this.written);
  }

  /** Go where a fragment says, as far as it says anything. */
  go(fragment) {
    const { player } = this;
    const { view, position, quaternion, reach, lens, share, fps, time, mode } = readLink(fragment);
    if (fps >= 1) player.setAutomatic(fps);
    else if (share > 0) player.setShare(share);
    else if (matchMedia("(pointer: coarse)").matches) player.setAutomatic(ON_PHONES);
    if (player.description.views[view]) this.visit(view);
    else if (position && quaternion && reach > 0) {
      const seen = player.description.views[lens];
      player.camera.take(seen ?? player.description.start);
      Object.assign(player.camera, { position, quaternion, reach });
      this.hold(undefined, seen ? lens : undefined);
    }
    if (mode) player.setMode(mode);
    if (time >= 0) this.linked = time; // seconds, of a film that may not be known yet
    this.arrive();
  }

  /** Go to the time of a link, once it is known how long the film lasts. */
  arrive() {
    if (this.linked === undefined || !this.player.film) return;
    this.stand(this.linked / this.player.playhead.seconds);
    this.linked = undefined;
  }
}
