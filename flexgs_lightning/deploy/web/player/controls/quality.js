// How many Gaussians to draw: chosen by hand on a log scale, or by the time that frames and orders take.

const SMALLEST = 1e-3;
const MEGABYTE = 1e6;

/** Shares on a log scale, their counts, and the bytes of the file that hold them. */
export class QualityScale {
  /** `ends` are pairs of Gaussians and bytes up to the end of each chunk. */
  constructor(total, ends) {
    this.total = total;
    this.ends = ends;
    this.smallest = Math.max(SMALLEST, 1 / total);
  }

  /** Share of a position in 0..1 of the slider. */
  share(position) {
    return this.smallest ** (1 - Math.min(Math.max(position, 0), 1));
  }

  position(share) {
    if (this.total === 1) return 1;
    return Math.min(1 - Math.log(Math.max(share, this.smallest)) / Math.log(this.smallest), 1);
  }

  count(share) {
    const count = Math.floor(share * this.total * (1 + 1e-12));
    return Math.min(Math.max(count, 1), this.total);
  }

  /** Megabytes of the file up to the chunk that the last of `count` Gaussians lies in. */
  megabytes(count) {
    return (this.ends.find(([stop]) => stop >= count) ?? this.ends[this.ends.length - 1])[1] / MEGABYTE;
  }

  /** The share that a number of a unit (percent, Gaussians, megabytes) means. */
  shareOf(number, unit) {
    if (unit === "percent") return number / 100;
    if (unit === "Gaussians") return number / this.total;
    const fitting = this.ends.filter(([, bytes]) => bytes <= number * MEGABYTE);
    return (fitting.length ? fitting[fitting.length - 1][0] : this.ends[0][0]) / this.total;
  }

  /** The number of a unit that a count means. */
  numberOf(count, unit) {
    if (unit === "percent") return Number(((100 * count) / this.total).toPrecision(3));
    if (unit === "Gaussians") return count;
    return Number(this.megabytes(count).toPrecision(3));
  }
}

const WINDOW = 6; // frames that are looked at together
const SLOW = 1.15; // a median beyond this many times the goal is too slow
const FAST = 1.06; // one below this many times is quick enough to draw more
const MARGIN = 0.9; // of a count that was too slow, what may be tried again
const PATIENCE = 40; // windows after which a count that was too slow may have become possible

/** Chooses the count that holds a frame rate, from the times between frames. */
export class AutomaticQuality {
  constructor(framesPerSecond, total, count) {
    this.goal = 1000 / framesPerSecond;
    this.total = total;
    this.count = Math.min(count, total);
    this.ceiling = Infinity; // the least count that was too slow
    this.settled = false;
    this.times = [];
    this.windows = 0;
  }

  /** Learn from a frame of `drawn` Gaussians that took `milliseconds`; whether the count has changed. */
  frame(milliseconds, drawn) {
    if (drawn !== this.count) {
      this.times = [];
      return false;
    }
    this.times.push(milliseconds);
    if (this.times.length <= WINDOW) return false;
    const median = this.times.slice(1).sort((a, b) => a - b)[WINDOW >> 1]; // the first may hold an upload
    this.times = [];
    return this.decide(median);
  }

  decide(median) {
    const before = this.count;
    if (++this.windows % PATIENCE === 0) this.ceiling *= 1.2;
    if (median > SLOW * this.goal) {
      this.ceiling = Math.min(this.ceiling, before);
      this.count = Math.max(1, Math.floor(before * Math.min(MARGIN, Math.max(0.25, this.goal / median))));
    } else if (median < FAST * this.goal) {
      const most = Math.min(this.total, MARGIN * this.ceiling);
      const growth = Math.min(2, Math.max(1.1, (0.9 * this.goal) / median));
      this.count = Math.max(before, Math.floor(Math.min(most, before * growth + 1)));
    }
    this.settled = this.count === before;
    return !this.settled;
  }
}

const LONGEST = 60; // milliseconds that an order may take while things move
const EASY = 0.6; // of that, below which more may be tried
const LESS = 0.8;
const MORE = 1.15;

/** How many Gaussians can be sorted often enough while a film plays. */
export class SortingPace {
  constructor() {
    this.most = Infinity; // Gaussians
  }

  /** Learn from the order of `count` Gaussians that took `milliseconds`. */
  learn(count, milliseconds) {
    if (milliseconds > LONGEST) this.most = Math.max(1, Math.floor(count * Math.max(LESS * LESS, LESS * (LONGEST / milliseconds))));
    else if (milliseconds < EASY * LONGEST && count >= this.most) this.most = Math.ceil(count * MORE);
  }

  /** A time between frames that stands for how long orders take, where `goal` milliseconds a frame are wished for. */
  static asFrame(milliseconds, goal) {
    return (milliseconds * goal) / LONGEST;
  }
}
