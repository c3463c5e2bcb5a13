// Draws Gaussians with WebGL 2: instanced quads that read all they need from integer textures.

import { FRAGMENT_SOURCE, vertexSource } from "./shaders.js";
import { DeviceError, GroupTextures } from "./textures.js";

const CONTEXT = {
  alpha: false,
  antialias: false,
  depth: false,
  stencil: false,
  powerPreference: "high-performance",
};
const BATCH = 4096; // quads of an instance: small instances are slow on most devices, and on processors very

export class Renderer {
  /** `near` is the least depth of what is drawn. */
  constructor(canvas, near) {
    this.canvas = canvas;
    this.near = near;
    this.gl = canvas.getContext("webgl2", CONTEXT);
    if (!this.gl) {
      throw new DeviceError(
        "This browser has no WebGL 2, which the player draws with. A current Chrome, Edge, Firefox or Safari " +
          "has it; it may be switched off in the settings (hardware acceleration).",
      );
    }
  }

  /** Begin a film of these traits. */
  open(header) {
    const { gl } = this;
    this.header = header;
    this.groups = [];
    this.programs = new Map();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, quadIndices(), gl.STATIC_DRAW);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); // over, of colours multiplied by alpha, back to front
  }

  /** Make room for a group; returns how many of its Gaussians, in whole chunks, this device's textures hold. */
  openGroup(index, group) {
    this.groups[index] = new GroupTextures(this.gl, this.header, group);
    return this.groups[index].held;
  }

  /**
   * Draw a group through a camera: `rotation` (9, row by row), `position`, and `lens` in pixels of the canvas. `look` has
   * the `mode` of colours, and what that needs: `moments` in the group's time, `nearness`, `pace`.
   */
  draw(group, { rotation, position, lens }, look) {
    const { gl, canvas, header } = this;
    const size = [canvas.width, canvas.height];
    gl.viewport(0, 0, ...size);
    gl.clearColor(...(look.mode === "depth" ? [0, 0, 0] : header.background), 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!group || group.visible === 0) return;
    const { program, places } = this.programFor(group, look.mode);
    gl.useProgram(program);
    group.bind(places, look);
    gl.uniform2i(places.range, group.visible, BATCH);
    gl.uniformMatrix3fv(places.rotation, true, rotation);
    const row = (i) => rotation.slice(3 * i, 3 * i + 3);
    const translation = [0, 1, 2].map((i) => -row(i).reduce((sum, r, k) => sum + r * position[k], 0));
    gl.uniform3fv(places.translation, translation);
    gl.uniform3fv(places.eye, position);
    gl.uniform4fv(places.lens, lens);
    gl.uniform1f(places.near, this.near);
    gl.uniform4fv(places.limits, slopeLimits(lens, size));
    gl.uniform2fv(places.size, size);
    gl.uniform1i(places.antialiased, header.antialiased ? 1 : 0);
    if (places.nearness) gl.uniform2fv(places.nearness, group.nearness);
    if (places.pace) gl.uniform1f(places.pace, look.pace);
    gl.drawElementsInstanced(gl.TRIANGLES, 6 * BATCH, gl.UNSIGNED_SHORT, 0, Math.ceil(group.visible / BATCH));
  }

  /** The program for a kind of motion and a mode, linked when it is first needed. */
  programFor({ motion, kind }, mode) {
    const key = `${mode} ${kind}`;
    if (!this.programs.has(key)) {
      const program = link(this.gl, vertexSource(this.header.degree, motion, mode), FRAGMENT_SOURCE);
      this.programs.set(key, { program, places: uniforms(this.gl, program) });
    }
    return this.programs.get(key);
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
  const names = Array.from({ length: count }, (_, i) => gl.getActiveUniform(program, i).name.replace("[0]", ""));
  return Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)]));
}
