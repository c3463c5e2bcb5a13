// The part of the vertex shader that moves Gaussians: places, rotations and lives at a moment, from the words behind
// those of a still row (loading/packing.js writes them). model/motion.py, basis_motion.py and lifespan.py say the same.

import { motionLayout } from "../loading/row_layout.js";

/** Texels of a row's part that does not move. */
const STILL_TEXELS = 2;

/** Declares Motion, fetchMotion, mixed, placeAt, turnAt and fadeAt; nothing for scenes that stand still. */
export function motionSource(motion) {
  if (!motion) return "";
  const { floats, halves, texels } = motionLayout(motion);
  const word = (i) => `words[${i >> 2}][${i & 3}]`;
  const reads = Array.from({ length: floats }, (_, i) => `uintBitsToFloat(${word(i)})`);
  const pairs = Array.from({ length: halves / 2 }, (_, i) => `halves(${word(floats + i)})`);
  const life = motion.lives ? `${pairs.pop()} / vec2(8192.0, 1024.0)` : "vec2(0.5, 0.0)";
  const turning = TURNINGS[motion.path]?.(pairs) ?? "vec4(0.0)";
  return `
const int FLOATS = ${Math.max(floats, 1)};
struct Motion { float path[FLOATS]; vec4 turning; vec2 life; }; // life: centre, and logarithm of the width
uniform float moments[2]; // the time that is drawn, and one a little apart that tells the speed

Motion fetchMotion(int index) {
  uvec4 words[${texels}];
  for (int i = 0; i < ${texels}; i++) words[i] = texel(rowTexels, ${STILL_TEXELS + texels} * index + ${STILL_TEXELS} + i);
  return Motion(float[](${reads.join(", ") || "0.0"}), ${turning}, ${life});
}

Motion mixed(Motion a, Motion b, float w) {
  for (int i = 0; i < FLOATS; i++) a.path[i] = mix(a.path[i], b.path[i], w);
  return Motion(a.path, mix(a.turning, b.turning, w), mix(a.life, b.life, w));
}

float fadeAt(Motion motion) {
  float away = (moments[0] - motion.life.x) * exp(-motion.life.y);
  return ${motion.lives ? "exp(-away * away)" : "1.0"};
}
${PATHS[motion.path](motion)}`;
}

/** Of what the rotation changes by, or has as its real part, from pairs of halves. */
const TURNINGS = {
  polynomial: (pairs) => `vec4(${pairs.join(", ")}) / 2048.0`,
  free_bases: ([real]) => `vec4(vec3(0.0), ${real}.x / 8192.0)`,
};

const PATHS = {
  none: () => `
vec3 placeAt(vec3 mean, Motion motion, int when) { return mean; }
vec4 turnAt(vec4 turn, Motion motion) { return turn; }
`,
  polynomial: ({ degree }) => `
vec3 coefficient(Motion motion, int k) {
  return vec3(motion.path[3 * k], motion.path[3 * k + 1], motion.path[3 * k + 2]);
}
vec3 placeAt(vec3 mean, Motion motion, int when) {
  float d = moments[when] - motion.life.x;
  vec3 slope = coefficient(motion, ${degree - 1});
  for (int k = ${degree - 2}; k >= 0; k--) slope = slope * d + coefficient(motion, k);
  return mean + slope * d;
}
vec4 turnAt(vec4 turn, Motion motion) { return turn + (moments[0] - motion.life.x) * motion.turning; }
`,
  free_bases: ({ count }) => `${trajectories(count)}
vec3 placeAt(vec3 mean, Motion motion, int when) { return mean + shiftOf(motion, when); }
vec4 turnAt(vec4 turn, Motion motion) { return vec4(turn.xyz, motion.turning.w) + turnOf(motion, 0); }
`,
  bases: ({ count }) => `${trajectories(count)}
vec4 rigidTurn(Motion motion, int when) { return normalize(turnOf(motion, when) + vec4(0.0, 0.0, 0.0, 1.0)); }
vec3 placeAt(vec3 mean, Motion motion, int when) {
  vec4 q = rigidTurn(motion, when);
  vec3 across = 2.0 * cross(q.xyz, mean);
  return mean + q.w * across + cross(q.xyz, across) + shiftOf(motion, when);
}
vec4 turnAt(vec4 turn, Motion motion) {
  vec4 q = rigidTurn(motion, 0);
  return vec4(q.w * turn.xyz + turn.w * q.xyz + cross(q.xyz, turn.xyz), q.w * turn.w - dot(q.xyz, turn.xyz));
}
`,
};

/** Shared trajectories at both moments, and a Gaussian's mixture of them. */
function trajectories(count) {
  const mixture = (name, kind) => `
${kind} ${name}Of(Motion motion, int when) {
  ${kind} sum = ${kind}(0.0);
  for (int j = 0; j < ${count}; j++) sum += motion.path[j] * ${name}s[when * ${count} + j];
  return sum;
}`;
  return `
uniform vec3 shifts[${2 * count}];
uniform vec4 turns[${2 * count}]; // x, y, z, w, less the identity
${mixture("shift", "vec3")}${mixture("turn", "vec4")}`;
}
