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
    player.addEventListener("move", () => this.leave());
    addEventListener("hashchange", () => location.hash !== this.written && this.go(location.hash));
  }

  /** Stand where a test view was taken. */
  visit(index) {
    const { camera, description } = this.player;
    const view = description.views[index];
    if (!view) return;
    camera.take(view, description.focus);
    this.hold(index, index);
  }

  /** Stand where the player began. */
  start() {
    const { camera, description } = this.player;
    camera.take(description.start, description.focus);
    this.hold(undefined, undefined);
  }

  hold(view, lens) {
    this.view = view;
    this.lens = lens;
    this.held = JSON.stringify(this.player.camera.state);
    this.player.moved();
  }

  /** After a movement: a view that the camera has left is no longer visited. */
  leave() {
    if (this.view !== undefined && JSON.stringify(this.player.camera.state) !== this.held) this.view = undefined;
    this.tell();
  }

  /** Let the address follow soon. */
  tell() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.write(), WRITE_AFTER);
  }

  write() {
    const { camera, share, automatic } = this.player;
    const { position, quaternion, reach } = camera;
    const fps = automatic ? Math.round(1000 / automatic.goal) : undefined;
    this.written = writeLink({ view: this.view, position, quaternion, reach, lens: this.lens, share, fps });
    history.replaceState(null, "", this.written);
  }

  /** Go where a fragment says, as far as it says anything. */
  go(fragment) {
    const { player } = this;
    const { view, position, quaternion, reach, lens, share, fps } = readLink(fragment);
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
  }
}
