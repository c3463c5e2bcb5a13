// Gaussians to ellipses on the screen, as flexgs_lightning/rendering draws them: EWA splatting with a low-pass of
// 0.3 square pixels, opacity-aware radius, alpha at most 0.999 and nothing below 1 / 255.

import { rowWords } from "../loading/row_layout.js";
import { motionSource } from "./motion_source.js";

const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
`;

/** What a still row is; those of moving Gaussians are `texels` longer. */
const fetchSource = (texels) => `
uniform usampler2D rowTexels, harmonicTexels, orderTexels;
uniform int lineBits;     // width of all textures, as a power of two

struct Row { vec3 mean; float t; vec3 scales; vec4 turn; vec3 sh0; };

uvec4 texel(usampler2D from, int index) {
  return texelFetch(from, ivec2(index & ((1 << lineBits) - 1), index >> lineBits), 0);
}

vec2 halves(uint word) { return vec2(int(word << 16) >> 16, int(word) >> 16); }

Row fetchRow(int index) { // loading/packing.js writes these words
  uvec4 a = texel(rowTexels, ${texels} * index), b = texel(rowTexels, ${texels} * index + 1);
  vec2 tr = halves(a.w), s01 = halves(b.x), s2x = halves(b.y), yz = halves(b.z), gb = halves(b.w);
  return Row(uintBitsToFloat(a.xyz), tr.x / 4096.0, vec3(s01, s2x.x) / 1024.0, vec4(s2x.y, yz, 8192.0) / 8192.0,
    vec3(tr.y, gb) / 1024.0);
}

Row blended(Row a, Row b, float w) {
  return Row(mix(a.mean, b.mean, w), mix(a.t, b.t, w), mix(a.scales, b.scales, w), mix(a.turn, b.turn, w),
    mix(a.sh0, b.sh0, w));
}
`;

/** Colour of the harmonics in a direction: the basis, signs and order of 3D Gaussian Splatting. */
function colourSource(degree) {
  const width = 3 * ((degree + 1) ** 2 - 1);
  const texels = Math.ceil(((width >> 2) + 1) / 4);
  const coefficient = (k) => `vec3(${[0, 1, 2].map((c) => byteOf(3 * k + c)).join(", ")})`;
  const byteOf = (d) => `float(int(words[${d >> 4}][${(d >> 2) & 3}] << ${24 - 8 * (d & 3)}) >> 24)`;
  const basis = [
    ["-0.4886025119029199 * y", "0.4886025119029199 * z", "-0.4886025119029199 * x"],
    [
      "1.0925484305920792 * x * y", "-1.0925484305920792 * y * z", "0.31539156525252005 * (3.0 * zz - 1.0)",
      "-1.0925484305920792 * x * z", "0.5462742152960396 * (xx - yy)",
    ],
    [
      "-0.5900435899266435 * y * (3.0 * xx - yy)", "2.890611442640554 * x * y * z",
      "-0.4570457994644658 * y * (5.0 * zz - 1.0)", "0.3731763325901154 * z * (5.0 * zz - 3.0)",
      "-0.4570457994644658 * x * (5.0 * zz - 1.0)", "1.445305721320277 * z * (xx - yy)",
      "-0.5900435899266435 * x * (xx - 3.0 * yy)",
    ],
  ].slice(0, degree).flat(); // prettier-ignore
  const terms = basis.map((factor, k) => `  sum += ${factor} * ${coefficient(k)};`).join("\n");
  if (degree === 0) return "vec3 harmonics(int rank, vec3 direction) { return vec3(0.0); }";
  return `
vec3 harmonics(int rank, vec3 direction) {
  uvec4 words[${texels}];
  for (int i = 0; i < ${texels}; i++) words[i] = texel(harmonicTexels, ${texels} * rank + i);
  float x = direction.x, y = direction.y, z = direction.z, xx = x * x, yy = y * y, zz = z * z;
  vec3 sum = vec3(0.0);
${terms}
  return sum * uintBitsToFloat(words[${width >> 4}][${(width >> 2) & 3}] & 0xffffff00u);
}`;
}

const MOVE = `
  Motion motion = fetchMotion(upper + i);
  if (i < lowerCount) motion = mixed(motion, fetchMotion(lower + i), weight);
  vec3 still = row.mean;
  row.mean = placeAt(still, motion, 0);
  row.turn = turnAt(row.turn, motion);`;

const FADE = `
  opacity *= fadeAt(motion);
  if (opacity < least) return;`;

/** What Gaussians are coloured by. */
const COLOURS = {
  colours: `vec3 seen = row.sh0 * 0.28209479177387814 + harmonics(i, normalize(row.mean - eye)) + 0.5;
  colour = vec4(max(seen, 0.0), opacity);`,
  depth: `colour = vec4(vec3(clamp((1.0 / centre.z - nearness.x) / (nearness.y - nearness.x), 0.0, 1.0)), opacity);`,
  motion: `float speed = clamp(distance(placeAt(still, motion, 1), row.mean) * pace, 0.0, 1.0), lit = sqrt(speed);
  float grey = dot(clamp(row.sh0 * 0.28209479177387814 + 0.5, 0.0, 1.0), vec3(1.0 / 3.0));
  colour = vec4(mix(vec3(0.35 * grey), heat(lit), lit), opacity);`,
};

const UNIFORMS = {
  colours: "",
  depth: "uniform vec2 nearness;    // 1 / depth of what is black, and of what is white\n",
  motion: `uniform float pace;       // of a way between the two moments, what makes it a speed that is brightest at 1
const vec3 HEAT[9] = vec3[](vec3(0.578, 0.148, 0.404), vec3(0.695, 0.195, 0.354), vec3(0.802, 0.259, 0.283),
  vec3(0.894, 0.353, 0.194), vec3(0.955, 0.469, 0.1), vec3(0.985, 0.601, 0.024), vec3(0.983, 0.744, 0.138),
  vec3(0.953, 0.889, 0.351), vec3(0.988, 0.998, 0.645)); // the upper part of matplotlib's "inferno"
vec3 heat(float level) {
  float place = 8.0 * level;
  int knot = min(int(place), 7);
  return mix(HEAT[knot], HEAT[knot + 1], place - float(knot));
}
`,
};

const projectSource = (moves, mode) => `
uniform int upper, lower, lowerCount;
uniform float weight, near; // near: least depth of what is drawn
uniform mat3 rotation;    // world to camera
uniform vec3 translation, eye;
uniform vec4 lens;        // fx, fy, cx, cy in pixels
uniform vec4 limits;      // lowest x, y and highest x, y of x / z and y / z in the Jacobian
uniform vec2 size;        // of the canvas in pixels
uniform bool antialiased;
uniform ivec2 range;      // quads in all, and in an instance
${UNIFORMS[mode]}out vec2 offset;          // in standard deviations
flat out vec4 colour;     // and opacity

mat3 turned(vec4 turn) {  // rotation matrix of a quaternion (x, y, z, w)
  vec4 q = normalize(turn);
  float x = q.x, y = q.y, z = q.z, w = q.w;
  return mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0); // clipped, unless it is seen
  int quad = gl_InstanceID * range.y + (gl_VertexID >> 2);
  if (quad >= range.x) return;
  int i = int(texel(orderTexels, quad >> 2)[quad & 3]);
  Row row = fetchRow(upper + i);
  if (i < lowerCount) row = blended(row, fetchRow(lower + i), weight);${moves ? MOVE : ""}
  vec3 centre = rotation * row.mean + translation;
  if (centre.z < near) return;

  mat3 axes = transpose(rotation);
  vec2 slope = clamp(centre.xy / centre.z, limits.xy, limits.zw);
  vec2 j = lens.xy / centre.z;
  mat3 turn = turned(row.turn);
  vec3 scales = exp(row.scales);
  vec3 f1 = ((j.x * (axes[0] - slope.x * axes[2])) * turn) * scales;
  vec3 f2 = ((j.y * (axes[1] - slope.y * axes[2])) * turn) * scales;
  float xx = dot(f1, f1), xy = dot(f1, f2), yy = dot(f2, f2);
  vec3 n = cross(f1, f2);
  float plain = dot(n, n), determinant = plain + 0.3 * (xx + yy) + 0.09;
  xx += 0.3;
  yy += 0.3;

  float t = clamp(row.t, 0.0, 1.0), opacity = t * t * (3.0 - 2.0 * t);${moves ? FADE : ""}
  if (antialiased) opacity *= sqrt(plain / determinant);
  if (opacity < 1.0 / 255.0) return;
  float sigmas = min(3.33, sqrt(2.0 * log(255.0 * opacity)));
  vec2 pixel = lens.xy * centre.xy / centre.z + lens.zw;
  vec2 reach = ceil(sigmas * sqrt(vec2(xx, yy)));
  if (any(lessThanEqual(pixel + reach, vec2(0.0))) || any(greaterThanEqual(pixel - reach, size))) return;

  float longest = 0.5 * (xx + yy) + length(vec2(0.5 * (xx - yy), xy));
  vec2 along = abs(xy) > 1e-6 * longest ? normalize(vec2(xy, longest - xx))
    : xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0);
  vec2 corner = vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1) * 2.0 - 1.0;
  offset = sigmas * corner;
  pixel += offset.x * sqrt(longest) * along + offset.y * sqrt(determinant / longest) * vec2(-along.y, along.x);
  gl_Position = vec4((2.0 * pixel / size - 1.0) * vec2(1.0, -1.0), 0.0, 1.0);
  ${COLOURS[mode]}
}
`;

/**
 * Vertex shader for files of an SH degree and a kind of motion (null for none), that colours by `mode`: "colours",
 * "depth", or "motion" where there is some.
 */
export function vertexSource(degree, motion, mode) {
  const texels = rowWords(motion) / 4;
  const lives = motion ? "uniform float least; // opacity below which Gaussians are not drawn\n" : "";
  return HEAD + fetchSource(texels) + lives + motionSource(motion) + colourSource(degree) + projectSource(motion, mode);
}

export const FRAGMENT_SOURCE = `${HEAD}
in vec2 offset;
flat in vec4 colour;
out vec4 result;

void main() {
  float alpha = min(0.999, colour.a * exp(-0.5 * dot(offset, offset)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(colour.rgb * alpha, alpha);
}
`;
