// Little-endian numbers of an elastic file's header, and what is said of those that cannot be.

/** What is wrong with a file, in words for people. */
export class FileError extends Error {}

export function check(good, name, found) {
  if (!good) throw new FileError(`The elastic file is damaged: ${name} out of range (${found}).`);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** CRC-32 of bytes, the one of zlib. */
export function crc32(bytes) {
  let crc = -1;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Takes numbers from bytes, and never more than are there. */
export class Reader {
  constructor(bytes) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.place = 0;
  }

  get left() {
    return this.view.byteLength - this.place;
  }

  array(kind, count) {
    const size = parseInt(kind.match(/\d+/)[0], 10) / 8;
    check(count * size <= this.left, "header", "it ends early");
    const found = [];
    for (let i = 0; i < count; i++, this.place += size) {
      found.push(this.view[`get${kind}`](this.place, true));
    }
    return found;
  }

  number(kind) {
    return this.array(kind, 1)[0];
  }

  /** Finite ones. */
  floats(count) {
    const found = this.array("Float32", count);
    check(found.every(Number.isFinite), "a number", "not finite");
    return found;
  }
}
