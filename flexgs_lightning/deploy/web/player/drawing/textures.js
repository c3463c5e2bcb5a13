// Textures of plain numbers: what a group of frames is drawn from.

import { harmonicWords, rowWords } from "../loading/row_layout.js";
import { levelBases, rowsFor } from "./levels.js";
import { trajectoriesAt } from "./trajectories.js";

const WIDEST = 4096; // texels of a texture's row

/** What this device cannot do, in words for people. */
export class DeviceError extends Error {}

/** A texture of 32-bit words, four a texel, addressed as one long row. */
export class Words {
  constructor(gl, texels, most) {
    this.gl = gl;
    this.bits = Math.log2(Math.min(WIDEST, most));
    const width = 1 << this.bits;
    const height = Math.max(1, Math.min(most, Math.ceil(texels / width)));
    this.capacity = width * height;
    this.texture = gl.createTexture();
    this.bind(0);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32UI, width, height);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    }
    if (gl.getError() === gl.OUT_OF_MEMORY) {
      throw new DeviceError("This device's graphics memory cannot hold the scene.");
    }
  }

  bind(unit) {
    this.gl.activeTexture(this.gl.TEXTURE0 + unit);
    this.gl.bindTexture(this.gl.TEXTURE_2D, this.texture);
  }

  /** Write words from a texel on: the rest of a line, whole lines, the beginning of a line. */
  write(first, words) {
    const { gl } = this;
    const width = 1 << this.bits;
    this.bind(0);
    let texel = first;
    const stop = first + words.length / 4;
    while (texel < stop) {
      const [x, y] = [texel & (width - 1), texel >> this.bits];
      const columns = Math.min(width - x, stop - texel);
      const lines = x === 0 ? Math.max(1, Math.floor((stop - texel) / width)) : 1;
      const [format, kind] = [gl.RGBA_INTEGER, gl.UNSIGNED_INT];
      gl.texSubImage2D(gl.TEXTURE_2D, 0, x, y, columns, lines, format, kind, words, 4 * (texel - first));
      texel += columns * lines;
    }
  }
}

/** Rows and harmonics of a group, and the order that was sorted last. */
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
