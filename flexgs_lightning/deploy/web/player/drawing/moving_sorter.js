// Order by depth of Gaussians that move: their depths at a moment, and of those alone that live around it.

import { DepthSorter, FAR, HIDDEN } from "./counting_sort.js";
import { trajectoriesAt } from "./trajectories.js";

const MEAN = 3; // floats that a Gaussian's begin with (loading/row_layout.js)

export class MovingDepthSorter extends DepthSorter {
  constructor(motion, width, near) {
    super(near);
    this.motion = motion;
    this.width = width; // floats of a Gaussian
    this.moment = 0; // that is sorted for, in the group's time
    this.around = 0; // time before and after it at which the order may be used
  }

  /** As for Gaussians that stand still, at the moment. */
  measure(places, { upper, lower, lowerCount, weight }, count, axis, keys) {
    const { depths, width, near } = this;
    this.prepare(axis);
    let low = HIDDEN;
    let high = 0;
    let visible = 0;
    for (let i = 0; i < count; i++) {
      let depth = this.depth(places, width * (upper + i), axis);
      if (i < lowerCount) {
        const other = this.depth(places, width * (lower + i), axis);
        depth = depth < 0 ? other : other < 0 ? depth : depth + weight * (other - depth);
      }
      if (!(depth >= near && depth <= FAR)) {
        keys[i] = HIDDEN;
        continue;
      }
      depths[i] = depth;
      const key = keys[i];
      if (key < low) low = key;
      if (key > high) high = key;
      visible++;
    }
    return [low, high, visible];
  }

  /** Trajectories at the moment, as far as depths need them. */
  prepare(axis) {
    const { motion } = this;
    if (!motion.count) return;
    const { shifts, turns } = trajectoriesAt(motion, Math.min(Math.max(this.moment, 0), 1));
    this.turns = turns;
    this.advances = Float64Array.from({ length: motion.count }, (_, j) => {
      return axis[0] * shifts[3 * j] + axis[1] * shifts[3 * j + 1] + axis[2] * shifts[3 * j + 2];
    });
  }

  /** Depth of the Gaussian whose floats begin at a place; negative if it does not live around the moment. */
  depth(places, at, axis) {
    const { path, degree } = this.motion;
    const life = at + this.width - 2;
    const d = this.moment - places[life];
    if (Math.abs(d) > places[life + 1] + this.around) return -1;
    if (path === "bases") return this.rigidDepth(places, at, axis);
    let depth = axis[0] * places[at] + axis[1] * places[at + 1] + axis[2] * places[at + 2] + axis[3];
    if (path === "polynomial") {
      let power = d;
      for (let k = 0, m = at + MEAN; k < degree; k++, m += 3, power *= d) {
        depth += power * (axis[0] * places[m] + axis[1] * places[m + 1] + axis[2] * places[m + 2]);
      }
    } else if (path === "free_bases") {
      for (let j = 0; j < this.advances.length; j++) depth += places[at + MEAN + j] * this.advances[j];
    }
    return depth;
  }

  /** Of a Gaussian that moves by a mixture of rigid motions. */
  rigidDepth(places, at, axis) {
    const { turns, advances } = this;
    let x = 0;
    let y = 0;
    let z = 0;
    let w = 1;
    let depth = axis[3];
    for (let j = 0; j < advances.length; j++) {
      const weight = places[at + MEAN + j];
      x += weight * turns[4 * j];
      y += weight * turns[4 * j + 1];
      z += weight * turns[4 * j + 2];
      w += weight * turns[4 * j + 3];
      depth += weight * advances[j];
    }
    const scale = 2 / (x * x + y * y + z * z + w * w);
    const a = places[at];
    const b = places[at + 1];
    const c = places[at + 2];
    const u = y * c - z * b; // the axis across the mean
    const v = z * a - x * c;
    const s = x * b - y * a;
    depth += axis[0] * (a + scale * (w * u + y * s - z * v));
    depth += axis[1] * (b + scale * (w * v + z * u - x * s));
    return depth + axis[2] * (c + scale * (w * s + x * v - y * u));
  }
}
