// How many Gaussians can be sorted often enough while a film plays.

const LONGEST = 60; // milliseconds that an order may take while things move
const EASY = 0.6; // of that, below which more may be tried
const LESS = 0.8;
const MORE = 1.15;

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
