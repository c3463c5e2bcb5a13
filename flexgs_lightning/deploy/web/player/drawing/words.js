// Textures of plain numbers.

const WIDEST = 4096; // texels of a texture's row

/** What this device cannot do, in words for people. */
export class DeviceError extends Error {}

/** A texture of 32-bit words, four a texel, addressed as one long row. */
export class Words {
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
