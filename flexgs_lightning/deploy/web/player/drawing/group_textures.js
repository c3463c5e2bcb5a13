// What a group of frames is drawn from: its rows, harmonics, and the order that was sorted last.

import { harmonicWords, rowWords } from "../loading/row_layout.js";
import { levelBases, rowsFor } from "./levels.js";
import { trajectoriesAt } from "./trajectories.js";
import { Words } from "./words.js";

export class GroupTextures {
  /** `group` has `counts` of levels, `ends` of chunks as pairs of Gaussians and bytes, `available` and `motion`. */
  constructor(gl, { width }, { counts, available, ends, motion }) {
    this.gl = gl;
    this.motion = motion;
    this.kind = motion ? [motion.path, motion.degree, motion.count, motion.lives].join() : "still";
    this.bases = levelBases(counts);
    this.rowTexels = rowWords(motion) / 4;
    this.harmonicTexels = harmonicWords(width) / 4;
    const texels = (count) => [
      rowsFor(count, counts) * this.rowTexels,
      Math.max(1, count * this.harmonicTexels),
      Math.ceil(count / 4),
    ];
    const most = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    const textures = texels(available).map((count) => new Words(gl, count, most));
    [this.rows, this.harmonics, this.order] = textures;
    this.visible = 0;
    const stops = ends.map(([stop]) => stop).filter((stop) => stop <= available);
    const held = stops.filter((stop) => texels(stop).every((count, i) => count <= textures[i].capacity));
    this.held = held[held.length - 1] ?? 0;
  }

  /** Take a decoded chunk. */
  add({ level, first, words, firstHarmonics, harmonics }) {
    this.rows.write((this.bases[level] + first) * this.rowTexels, words);
    this.harmonics.write(firstHarmonics * this.harmonicTexels, harmonics);
  }

  /** Take the ranks to draw, the farthest first, the rows that they mean, and how near they are. */
  setOrder(order, visible, blend, nearness) {
    this.order.write(0, order.subarray(0, 4 * Math.ceil(visible / 4)));
    this.visible = visible;
    this.blend = blend;
    this.nearness = nearness;
  }

  /** Let a program draw it, at moments in the group's time. */
  bind(places, { moments }) {
    const { gl, motion } = this;
    [this.rows, this.harmonics, this.order].forEach((words, unit) => words.bind(unit));
    ["rowTexels", "harmonicTexels", "orderTexels"].forEach((name, unit) => gl.uniform1i(places[name], unit));
    gl.uniform1i(places.lineBits, this.rows.bits);
    for (const name of ["upper", "lower", "lowerCount"]) gl.uniform1i(places[name], this.blend[name]);
    gl.uniform1f(places.weight, this.blend.weight);
    if (!motion) return;
    gl.uniform1f(places.least, motion.least);
    gl.uniform1fv(places.moments, moments);
    if (!motion.count) return;
    const both = moments.map((moment) => trajectoriesAt(motion, moment));
    gl.uniform3fv(places.shifts, both.flatMap(({ shifts }) => [...shifts]));
    gl.uniform4fv(places.turns, both.flatMap(({ turns }) => [...turns]));
  }
}
