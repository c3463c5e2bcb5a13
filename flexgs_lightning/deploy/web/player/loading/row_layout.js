// How a Gaussian's numbers lie in texels of four words: written by packing.js, read by the shader. A row is the words of
// a still Gaussian, means as floats and ten numbers of 16 bits, and behind them those of its motion.

export const STILL_WORDS = 8;

/**
 * Numbers of a motion: `floats` of 32 bits first (a polynomial's coefficients, or the weights of shared trajectories),
 * then `halves` of 16 bits (change of the rotation x, y, z, w; its real part, and room; centre and width of the life),
 * in whole texels.
 */
export function motionLayout({ path, degree, count, lives }) {
  const floats = path === "polynomial" ? 3 * degree : count;
  const halves = { polynomial: 4, free_bases: 2 }[path] ?? 0;
  const all = halves + (lives ? 2 : 0);
  return { floats, halves: all, texels: Math.ceil((floats + all / 2) / 4) };
}

/** Words of a row; `motion` is null of what stands still. */
export function rowWords(motion) {
  return STILL_WORDS + (motion ? 4 * motionLayout(motion).texels : 0);
}

/** Floats of a Gaussian that sorting needs: the mean, the floats of its motion, centre and half-width of its life. */
export function placeWidth(motion) {
  return 3 + (motion ? motionLayout(motion).floats + 2 : 0);
}

/** Words of a Gaussian's other spherical harmonics: a byte each, and a scale; a multiple of a texel's four. */
export function harmonicWords(width) {
  return width === 0 ? 0 : 4 * Math.ceil(((width >> 2) + 1) / 4);
}

/** Units of the halves of a motion. */
export const TURNING_UNIT = 2 ** -11;
export const REAL_UNIT = 2 ** -13;
export const CENTRE_UNIT = 2 ** -13;
export const WIDTH_UNIT = 2 ** -10;

/** A number as a signed integer of 16 bits. */
export function short(number) {
  return number < -32768 ? -32768 : number > 32767 ? 32767 : Math.round(number);
}
