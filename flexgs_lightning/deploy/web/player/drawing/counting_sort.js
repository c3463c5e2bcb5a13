// Ranks of Gaussians from the farthest to the nearest: two passes of counting sort over their depths.

export const FAR = 1e10;
const DIGIT = 11; // bits of a pass
const BINS = 1 << DIGIT;
export const HIDDEN = 0xffffffff;

/** Buffers that a sort works in, kept from sort to sort. */
export class DepthSorter {
  /** `near` is the least depth of what is drawn. */
  constructor(near = 0.01) {
    this.near = near;
    this.bins = new Uint32Array(BINS);
    this.depths = new Float32Array(0);
    this.between = new Uint32Array(0);
  }

  /**
   * Write the ranks below `count` that lie in front of the camera to `order`, the farthest first, equal depths
   * by rank; returns how many they are.
   *
   * `means` are all levels' rows; `blend` says which rows are drawn (see levels.js); `axis` is the third row of
   * the view matrix.
   */
  sort(means, blend, count, axis, order) {
    if (this.depths.length < count) {
      this.depths = new Float32Array(count);
      this.between = new Uint32Array(count);
    }
    const keys = new Uint32Array(this.depths.buffer); // positive floats are ordered as their bits are
    const [low, high, visible] = this.measure(means, blend, count, axis, keys);
    if (visible === 0) return 0;
    const shift = Math.max(0, 32 - Math.clz32(high - low) - 2 * DIGIT);
    this.scale = { high, shift };
    for (let i = 0; i < count; i++) if (keys[i] !== HIDDEN) keys[i] = (high - keys[i]) >>> shift;

    const { bins, between } = this;
    this.startBins(keys, count, 0);
    for (let i = 0; i < count; i++) if (keys[i] !== HIDDEN) between[bins[keys[i] & (BINS - 1)]++] = i;
    this.startBins(keys, count, DIGIT);
    for (let i = 0; i < visible; i++) order[bins[keys[between[i]] >>> DIGIT]++] = between[i];
    return visible;
  }

  /** Depth of a rank that has been sorted, as exactly as the order knows it. */
  depthOf(rank) {
    const { high, shift } = this.scale;
    const bits = new Uint32Array(this.depths.buffer)[rank];
    return new Float32Array(Uint32Array.of(high - (bits << shift)).buffer)[0];
  }

  /** Fill in depths; lowest and highest of their bits, and how many are in front of the camera. */
  measure(means, { upper, lower, lowerCount, weight }, count, [ax, ay, az, aw], keys) {
    const { depths, near } = this;
    let low = HIDDEN;
    let high = 0;
    let visible = 0;
    for (let i = 0; i < count; i++) {
      const m = 3 * (upper + i);
      let depth = ax * means[m] + ay * means[m + 1] + az * means[m + 2] + aw;
      if (i < lowerCount) {
        const n = 3 * (lower + i);
        const other = ax * means[n] + ay * means[n + 1] + az * means[n + 2] + aw;
        depth += weight * (other - depth);
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

  /** Where each bin of a digit starts. */
  startBins(keys, count, digit) {
    const { bins } = this;
    bins.fill(0);
    for (let i = 0; i < count; i++) if (keys[i] !== HIDDEN) bins[(keys[i] >>> digit) & (BINS - 1)]++;
    let start = 0;
    for (let bin = 0; bin < BINS; bin++) {
      const size = bins[bin];
      bins[bin] = start;
      start += size;
    }
  }
}
