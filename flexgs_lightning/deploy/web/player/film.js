// A film: groups of frames one after the other in time, each of its own Gaussians. A scene that stands still is one.

import { countAt } from "./egs/head.js";

/** A moment this little before a group begins is its first: times of frames and of groups are rounded apart. */
const ROUNDING = 1e-6;

export class Film {
  /** `header` is what the loader says of a file. */
  constructor({ moves, seconds, frames, bounds, groups }) {
    this.moves = moves;
    this.seconds = seconds || undefined;
    this.frames = frames || undefined;
    this.bounds = bounds;
    this.groups = groups.map((group) => ({ ...group, loaded: 0 }));
    this.total = Math.max(...groups.map(({ total }) => total)); // shares are counted in Gaussians of the largest
  }

  /** The group that a time falls into. */
  at(time) {
    const later = this.bounds.findIndex((begin) => begin > time + ROUNDING);
    return later < 0 ? this.groups.length - 1 : Math.max(later - 1, 0);
  }

  /** A time as the group has it, from 0 to 1; times before and after the group are its ends. */
  within(group, time) {
    const [begin, end] = this.bounds.slice(group, group + 2);
    return Math.min(Math.max((time - begin) / (end - begin), 0), 1);
  }

  /** Part of the film that a group lasts. */
  span(group) {
    return this.bounds[group + 1] - this.bounds[group];
  }

  /** Gaussians of a group that a share is. */
  countIn(group, share) {
    return Math.max(1, countAt(share, this.groups[group].total));
  }

  /** The largest share that textures of this device hold, as far as groups are known. */
  get room() {
    return Math.min(1, ...this.groups.map(({ held, total }) => (held ?? total) / total));
  }

  /** How much of a share of each group is loaded, from 0 to 1. */
  progress(share) {
    const wanted = this.groups.map(({ available }, i) => Math.min(this.countIn(i, share), available));
    const loaded = this.groups.map((group, i) => Math.min(group.loaded, wanted[i]));
    const sum = (counts) => counts.reduce((before, count) => before + count, 0);
    return sum(loaded) / Math.max(1, sum(wanted));
  }

  /** Pairs of Gaussians of the largest group, and the bytes of all groups' chunks that hold such a share. */
  get ends() {
    const shares = this.groups.flatMap(({ total, ends }) => ends.map(([stop]) => stop / total));
    const bytes = ({ total, ends }, share) => ends.find(([stop]) => stop >= countAt(share, total))[1];
    return [...new Set(shares)]
      .sort((a, b) => a - b)
      .map((share) => [
        countAt(share, this.total),
        this.groups.reduce((sum, group) => sum + bytes(group, share), 0),
      ]);
  }
}
