// The camera: a rotation (world to camera, 9 numbers row by row: right, down, forward), a position, the distance of
// the point that it turns around, and the lens of the photo that it stands for.

const LEVEL = 0.996; // cosine: how near to straight up or down the camera may look

export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const add = (a, b, factor = 1) => a.map((value, i) => value + factor * b[i]);
export const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];
const length = (a) => Math.hypot(...a);
const normalized = (a) => a.map((value) => value / (length(a) || 1));

export class Camera {
  /** `up` is the direction that turning leaves upright; `unit` a length of the order of the scene's. */
  constructor(up, unit) {
    this.up = normalized(up);
    this.unit = unit;
    this.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1];
    this.position = [0, 0, 0];
    this.reach = unit;
  }

  get right() {
    return this.rotation.slice(0, 3);
  }

  get down() {
    return this.rotation.slice(3, 6);
  }

  get forward() {
    return this.rotation.slice(6, 9);
  }

  /** The point that it turns around. */
  get pivot() {
    return add(this.position, this.forward, this.reach);
  }

  /** Stand where a view of scene.json was taken; `focus` is what lies ahead, if that is known. */
  take({ viewmat, K, width, height }, focus) {
    this.rotation = [0, 1, 2].flatMap((row) => viewmat.slice(4 * row, 4 * row + 3));
    const translation = [3, 7, 11].map((place) => viewmat[place]);
    this.position = [0, 1, 2].map((k) => -dot([0, 3, 6].map((row) => this.rotation[row + k]), translation));
    this.photo = { K, width, height };
    if (focus) this.reach = Math.max(dot(add(focus, this.position, -1), this.forward), 0.1 * this.unit);
  }

  /** All that a movement changes, to come back to. */
  get state() {
    const { rotation, position, reach, photo } = this;
    return { rotation, position, reach, photo };
  }

  set state(state) {
    Object.assign(this, state);
  }

  /** The lens in pixels of a canvas that shows all that the photo shows, in the middle. */
  lensFor(width, height) {
    const { K, width: w, height: h } = this.photo;
    const scale = Math.min(width / w, height / h);
    const [left, top] = [(width - scale * w) / 2, (height - scale * h) / 2];
    return [scale * K[0], scale * K[1], scale * K[2] + left, scale * K[3] + top];
  }

  /** Turn by angles in radians, around the pivot, or on the spot to look around. */
  turn(sideways, upwards, onTheSpot) {
    const { pivot } = this;
    this.rotate(this.up, sideways);
    const height = dot(this.forward, this.up);
    const after = Math.sin(Math.asin(Math.max(-1, Math.min(1, height))) + upwards);
    const steeper = Math.abs(after) > Math.abs(height);
    if (!(steeper && Math.abs(after) > LEVEL)) this.rotate(this.right, upwards);
    if (!onTheSpot) this.position = add(pivot, this.forward, -this.reach);
  }

  /** Rotate the camera by the right-hand rule around an axis through itself (Rodrigues). */
  rotate(axis, angle) {
    const [c, s] = [Math.cos(angle), Math.sin(angle)];
    const turned = (v) => {
      const aside = cross(axis, v);
      const along = dot(axis, v) * (1 - c);
      return v.map((value, i) => value * c + aside[i] * s + axis[i] * along);
    };
    const forward = normalized(turned(this.forward));
    const right = normalized(add(turned(this.right), forward, -dot(turned(this.right), forward)));
    this.rotation = [...right, ...cross(forward, right), ...forward];
  }

  /** Move by lengths to the right, down and forward; the pivot goes along. */
  move(right, down, forward) {
    this.position = add(add(add(this.position, this.right, right), this.down, down), this.forward, forward);
  }

  /** Go nearer to the pivot or away from it. */
  approach(factor) {
    const { pivot } = this;
    this.reach = Math.max(this.reach * factor, 1e-3 * this.unit);
    this.position = add(pivot, this.forward, -this.reach);
  }

  /** Rotation as a quaternion (w, x, y, z) of the camera's axes in the world. */
  get quaternion() {
    const [a, b, c, d, e, f, g, h, i] = this.rotation;
    const squares = [1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i];
    const largest = squares.indexOf(Math.max(...squares));
    const products = [
      [squares[0], f - h, g - c, b - d],
      [f - h, squares[1], b + d, c + g],
      [g - c, b + d, squares[2], f + h],
      [b - d, c + g, f + h, squares[3]],
    ];
    return normalized(products[largest]);
  }

  set quaternion(q) {
    const [w, x, y, z] = normalized(q);
    this.rotation = [
      1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),
      2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x),
      2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y),
    ]; // prettier-ignore
  }
}
