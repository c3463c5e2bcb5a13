// Where a player is in time, and how it goes on. Time runs from 0 to 1 over the film.

/** Frames that a film is divided into for steps where nothing is known about them. */
const USUAL_FRAMES = 30;

export class Playhead {
  /** `seconds` is how long the film lasts, `frames` how many it was made of. */
  constructor({ seconds, frames } = {}) {
    this.seconds = seconds || 1;
    this.frames = frames || USUAL_FRAMES;
    this.time = 0;
    this.playing = false;
    this.loop = true; // begin again at the end, instead of stopping there
    this.speed = 1; // seconds of the film in one second; negative goes backwards
  }

  /** The time after so many seconds of the clock, and whether it is still playing then. */
  after(elapsed) {
    if (!this.playing) return [this.time, false];
    const time = this.time + (elapsed * this.speed) / this.seconds;
    if (time >= 0 && time <= 1) return [time, true];
    return this.loop ? [time - Math.floor(time), true] : [Math.min(Math.max(time, 0), 1), false];
  }

  /** Go on for so many seconds of the clock, if it is playing. */
  advance(elapsed) {
    [this.time, this.playing] = this.after(elapsed);
  }

  /** Play, or stand still; from the end that it goes to, begin again. */
  toggle() {
    this.playing = !this.playing;
    if (!this.playing || this.loop) return;
    if (this.speed > 0 && this.time >= 1) this.time = 0;
    if (this.speed < 0 && this.time <= 0) this.time = 1;
  }

  /** The frame at hand. */
  get frame() {
    return Math.min(Math.floor(this.time * this.frames + 1e-6), this.frames - 1);
  }

  /** Stop, and go to the frame that is so many later; around the ends where it loops. */
  step(by) {
    this.playing = false;
    const number = this.frame + by;
    const { frames } = this;
    this.time = (this.loop ? ((number % frames) + frames) % frames : Math.min(Math.max(number, 0), frames - 1)) / frames;
  }

  /** Go to a time. */
  seek(time) {
    this.time = Math.min(Math.max(time, 0), 1);
  }
}
