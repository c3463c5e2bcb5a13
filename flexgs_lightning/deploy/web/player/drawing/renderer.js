// Draws Gaussians with WebGL 2: instanced quads that read all they need from integer textures.

import { harmonicWords, ROW_WORDS } from "../loading/packing.js";
import { levelBases, rowsFor } from "./levels.js";
import { FRAGMENT_SOURCE, vertexSource } from "./shaders.js";

const CONTEXT = {
  alpha: false,
  antialias: false,
  depth: false,
  stencil: false,
  powerPreference: "high-performance",
};
const WIDEST = 4096; // texels of a texture's row
const BATCH = 4096; // quads of an instance: small instances are slow on most devices, and on processors very

/** What this device cannot do, in words for people. */
export class DeviceError extends Error {}

export class Renderer {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", CONTEXT);
    if (!this.gl) {
      throw new DeviceError(
        "This browser has no WebGL 2, which the player draws with. A current Chrome, Edge, Firefox or Safari " +
          "has it; it may be switched off in the settings (hardware acceleration).",
      );
    }
  }

  /**
   * Make room for the Gaussians of a file that are there; returns how many of them, in whole chunks, this device's
   * textures hold.
   */
  open(header) {
    const { gl } = this;
    const { available, counts, ends } = header;
    this.header = header;
    this.bases = levelBases(counts);
    this.program = link(gl, vertexSource(header.degree), FRAGMENT_SOURCE);
    this.places = uniforms(gl, this.program);
    this.harmonicTexels = harmonicWords(header.width) / 4;
    const texels = (count) => [
      rowsFor(count, counts) * (ROW_WORDS / 4),
      Math.max(1, count * this.harmonicTexels),
      Math.ceil(count / 4),
    ];
    const most = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    const textures = texels(available).map((count) => new Words(gl, count, most));
    [this.rows, this.harmonics, this.order] = textures;
    this.visible = 0;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, quadIndices(), gl.STATIC_DRAW);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); // over, of colours multiplied by alpha, back to front
    const stops = ends.map(([stop]) => stop).filter((stop) => stop <= available);
    const held = stops.filter((stop) => texels(stop).every((count, i) => count <= textures[i].capacity));
    return held[held.length - 1] ?? 0;
  }

  /** Take a decoded chunk. */
  add({ level, first, words, firstHarmonics, harmonics }) {
    this.rows.write((this.bases[level] + first) * (ROW_WORDS / 4), words);
    this.harmonics.write(firstHarmonics * this.harmonicTexels, harmonics);
  }

  /** Take the ranks to draw, the farthest first, and the rows that they mean. */
  setOrder(order, visible, blend) {
    this.order.write(0, order.subarray(0, 4 * Math.ceil(visible / 4)));
    this.visible = visible;
    this.blend = blend;
  }

  /** Draw through a camera: `rotation` (9, row by row), `position`, and `lens` in pixels of the canvas. */
  draw({ rotation, position, lens }) {
    const { gl, places, canvas } = this;
    const size = [canvas.width, canvas.height];
    gl.viewport(0, 0, ...size);
    gl.clearColor(...this.header.background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (this.visible === 0) return;
    gl.useProgram(this.program);
    [this.rows, this.harmonics, this.order].forEach((words, unit) => words.bind(unit));
    ["rowTexels", "harmonicTexels", "orderTexels"].forEach((name, unit) => gl.uniform1i(places[name], unit));
    gl.uniform1i(places.lineBits, this.rows.bits);
    gl.uniform2i(places.range, this.visible, BATCH);
    for (const name of ["upper", "lower", "lowerCount"]) gl.uniform1i(places[name], this.blend[name]);
    gl.uniform1f(places.weight, this.blend.weight);
    gl.uniformMatrix3fv(places.rotation, true, rotation);
    const row = (i) => rotation.slice(3 * i, 3 * i + 3);
    const translation = [0, 1, 2].map((i) => -row(i).reduce((sum, r, k) => sum + r * position[k], 0));
    gl.uniform3fv(places.translation, translation);
    gl.uniform3fv(places.eye, position);
    gl.uniform4fv(places.lens, lens);
    gl.uniform4fv(places.limits, slopeLimits(lens, size));
    gl.uniform2fv(places.size, size);
    gl.uniform1i(places.antialiased, this.header.antialiased ? 1 : 0);
    gl.drawElementsInstanced(gl.TRIANGLES, 6 * BATCH, gl.UNSIGNED_SHORT, 0, Math.ceil(this.visible / BATCH));
  }

  /** Wait until all that was asked for is drawn: reading a pixel does. */
  finish() {
    const { gl } = this;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  /** Name of what draws. */
  get device() {
    const { gl } = this;
    const extension = gl.getExtension("WEBGL_debug_renderer_info");
    return String(gl.getParameter(extension ? extension.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  }
}

/** The linearisation explodes far outside the image: x / z and y / z within the view and 15 % of its size. */
function slopeLimits([fx, fy, cx, cy], [width, height]) {
  const [x, y] = [(0.15 * width) / fx, (0.15 * height) / fy];
  return [-cx / fx - x, -cy / fy - y, (width - cx) / fx + x, (height - cy) / fy + y];
}

/** Two triangles for each of an instance's quads, whose corners are four vertices that follow each other. */
function quadIndices() {
  const corners = [0, 1, 2, 2, 1, 3];
  return Uint16Array.from({ length: 6 * BATCH }, (_, i) => 4 * Math.floor(i / 6) + corners[i % 6]);
}

/** A texture of 32-bit words, four a texel, addressed as one long row. */
class Words {
  constructor(gl, texels, most) {
    this.gl = gl;
    this.bits = Math.log2(Math.min(WIDEST, most));
    const width = 1 << this.bits;
    const height = Math.max(1, Math.min(most, Math.ceil(texels / width)));
    this.capacity = width * height;
    this.texture = gl.createTexture();
    this.bind(0);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32UI, width, height);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    }
    if (gl.getError() === gl.OUT_OF_MEMORY) {
      throw new DeviceError("This device's graphics memory cannot hold the scene.");
    }
  }

  bind(unit) {
    this.gl.activeTexture(this.gl.TEXTURE0 + unit);
    this.gl.bindTexture(this.gl.TEXTURE_2D, this.texture);
  }

  /** Write words from a texel on: the rest of a line, whole lines, the beginning of a line. */
  write(first, words) {
    const { gl } = this;
    const width = 1 << this.bits;
    this.bind(0);
    let texel = first;
    const stop = first + words.length / 4;
    while (texel < stop) {
      const [x, y] = [texel & (width - 1), texel >> this.bits];
      const columns = Math.min(width - x, stop - texel);
      const lines = x === 0 ? Math.max(1, Math.floor((stop - texel) / width)) : 1;
      const [format, kind] = [gl.RGBA_INTEGER, gl.UNSIGNED_INT];
      gl.texSubImage2D(gl.TEXTURE_2D, 0, x, y, columns, lines, format, kind, words, 4 * (texel - first));
      texel += columns * lines;
    }
  }
}

function link(gl, ...sources) {
  const program = gl.createProgram();
  [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].forEach((kind, i) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, sources[i]);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  });
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    const reasons = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
    throw new DeviceError(`This device's graphics driver refuses the player's shaders. ${reasons.join(" ")}`);
  }
  return program;
}

function uniforms(gl, program) {
  const count = gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS);
  const names = Array.from({ length: count }, (_, i) => gl.getActiveUniform(program, i).name);
  return Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)]));
}
