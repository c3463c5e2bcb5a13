// Mouse, touch, wheel and keyboard to movements of the camera.

const TURN = 0.005; // radians a pixel
const KEY_TURN = 1.2; // radians a second
const KEY_MOVE = 0.6; // scene units a second

/** Direction of each key: [sideways, upwards] turned, and [right, down, forward] moved. */
const TURNS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const MOVES = {
  KeyA: [-1, 0, 0],
  KeyD: [1, 0, 0],
  KeyQ: [0, 1, 0],
  KeyE: [0, -1, 0],
  KeyS: [0, 0, -1],
  KeyW: [0, 0, 1],
};
const ZOOMS = { "+": 0.9, "=": 0.9, "-": 1 / 0.9 };

/** Moves `camera` by what happens on `canvas`, and calls `moved` after each change. */
export class Input {
  constructor(canvas, camera, moved) {
    this.canvas = canvas;
    this.camera = camera;
    this.moved = moved;
    this.flying = false; // turning looks around, and does not go around the pivot
    this.pointers = new Map(); // places of what presses on the canvas
    this.keys = new Set();
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("keyup", (event) => this.keys.delete(event.code));
    canvas.addEventListener("blur", () => this.keys.clear());
  }

  /** Whether a key is held, so that time moves the camera. */
  get busy() {
    return this.keys.size > 0;
  }

  /** Move by the keys that are held, for `seconds`. */
  pass(seconds) {
    for (const code of this.keys) {
      const [turn, move] = [TURNS[code], MOVES[code]];
      const angle = KEY_TURN * seconds * (this.flying ? -1 : 1);
      if (turn) this.camera.turn(turn[0] * angle, -turn[1] * angle, this.flying);
      if (move) this.camera.move(...move.map((part) => part * KEY_MOVE * this.camera.unit * seconds));
      this.moved();
    }
  }

  press(event) {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, now);
    else if (this.pointers.size === 1) {
      const [x, y] = [now[0] - before[0], now[1] - before[1]];
      if (event.shiftKey || event.buttons & 6) this.pan(x, y);
      else if (this.flying) this.camera.turn(x * TURN * 0.5, y * TURN * 0.5, true);
      else this.camera.turn(-x * TURN, -y * TURN, false);
    }
    this.pointers.set(event.pointerId, now);
    this.moved();
  }

  /** One of two fingers has moved: their distance goes nearer, their middle moves the scene. */
  pinch(moving, before, now) {
    const [, other] = [...this.pointers].find(([id]) => id !== moving);
    const apart = (point) => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
    this.camera.approach(apart(before) / apart(now));
    this.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  }

  /** Move so that the pivot's surroundings follow the pointer. */
  pan(x, y) {
    const lens = this.camera.lensFor(this.canvas.clientWidth, this.canvas.clientHeight);
    this.camera.move((-x * this.camera.reach) / lens[0], (-y * this.camera.reach) / lens[1], 0);
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 0 ? event.deltaY / 100 : event.deltaY / 3;
    if (this.flying) this.camera.move(0, 0, -0.1 * lines * this.camera.unit);
    else this.camera.approach(1.1 ** lines);
    this.moved();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (ZOOMS[event.key]) {
      this.camera.approach(ZOOMS[event.key]);
      this.moved();
    } else if (TURNS[event.code] || MOVES[event.code]) this.keys.add(event.code);
    else return;
    event.preventDefault();
    this.moved();
  }
}
