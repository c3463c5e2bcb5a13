// The controls of time: what they do to the playhead, and what they say about it. Hidden where nothing moves.

const TELLING = 100; // milliseconds between two statements while a film plays

const element = (id) => document.getElementById(id);

/** Keys that step and play wherever nothing else takes them, and what they do. */
const KEYS = {
  " ": (playhead) => playhead.toggle(),
  k: (playhead) => playhead.toggle(),
  ",": (playhead) => playhead.step(-1),
  ".": (playhead) => playhead.step(1),
  Home: (playhead) => playhead.seek(0),
  End: (playhead) => playhead.seek(1),
};

/** Elements that have a use for keys themselves. */
const TAKES_KEYS = "input, select, button, summary, textarea, a";

export class Timeline {
  constructor(player) {
    this.player = player;
    this.told = 0;
    const click = (id, change) => element(id).addEventListener("click", () => player.turn(change));
    click("play", (playhead) => playhead.toggle());
    click("frame-back", (playhead) => playhead.step(-1));
    click("frame-on", (playhead) => playhead.step(1));
    const time = element("time");
    time.addEventListener("input", () => player.turn((playhead) => playhead.seek(Number(time.value))));
    time.addEventListener("keydown", (event) => this.slide(event));
    element("loop").addEventListener("change", ({ target }) => player.turn((playhead) => (playhead.loop = target.checked)));
    element("speed").addEventListener("change", ({ target }) => {
      player.turn((playhead) => (playhead.speed = Number(target.value)));
    });
    document.addEventListener("keydown", (event) => this.key(event));
    for (const name of ["header", "time"]) player.addEventListener(name, () => this.later());
  }

  /** On the slider, arrow keys are single frames, and space plays. */
  slide(event) {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (by) this.player.turn((playhead) => playhead.step(by));
    else if (event.key === " ") this.player.turn(KEYS[" "]);
    else return;
    event.preventDefault();
  }

  key(event) {
    const change = KEYS[event.key];
    if (!change || !this.player.film?.moves || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.defaultPrevented || event.target.closest?.(TAKES_KEYS)) return;
    event.preventDefault();
    this.player.turn(change);
  }

  /** State the time soon, however often it changes until then. */
  later() {
    if (this.waiting) return;
    this.waiting = true;
    const wait = this.player.playhead.playing ? Math.max(0, this.told + TELLING - performance.now()) : 0;
    setTimeout(() => {
      this.waiting = false;
      this.told = performance.now();
      this.show();
    }, wait);
  }

  show() {
    const { film, playhead, waiting } = this.player;
    if (!film) return;
    element("timeline").hidden = !film.moves;
    if (!film.moves) return;
    const { frames, seconds, playing } = playhead;
    const time = element("time");
    time.step = String(1 / (100 * frames));
    time.value = String(playhead.time);
    const now = (playhead.time * seconds).toFixed(2);
    const unit = film.seconds ? "s" : "of 1";
    time.setAttribute("aria-valuetext", `${now} ${unit}, frame ${playhead.frame + 1} of ${frames}`);
    element("moment").textContent = waiting ? "Loading …" : film.seconds ? `${now} / ${seconds.toFixed(2)} s` : now;
    const play = element("play");
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
    element("loop").checked = playhead.loop;
    element("speed").value = String(playhead.speed);
  }
}
