// Trajectories that all Gaussians of a group share, at a moment: uniform cubic B-splines (docs/elastic_file.md, 10.5).

const NEIGHBOURS = 4; // control points that a moment depends on

/** `shifts` [J, 3] and `turns` [J, 4] (x, y, z, w, less the identity where motions are rigid) at a time from 0 to 1. */
export function trajectoriesAt(motion, time) {
  const { count, knots } = motion;
  if (!count) return { shifts: new Float32Array(0), turns: new Float32Array(0) };
  const place = time * (knots - NEIGHBOURS + 1);
  const first = Math.min(Math.floor(place), knots - NEIGHBOURS);
  const weights = cubic(place - first);
  const blended = (points, width, order) =>
    Float32Array.from({ length: count * width }, (_, i) => {
      const from = width * Math.floor(i / width) + order[i % width];
      return weights.reduce((sum, weight, k) => sum + weight * points[(first + k) * count * width + from], 0);
    });
  return { shifts: blended(motion.shifts, 3, [0, 1, 2]), turns: blended(motion.turns, 4, [1, 2, 3, 0]) };
}

function cubic(v) {
  const [a, b, c] = [v, v * v, v * v * v];
  return [(1 - v) ** 3 / 6, (3 * c - 6 * b + 4) / 6, (-3 * c + 3 * b + 3 * a + 1) / 6, c / 6];
}
