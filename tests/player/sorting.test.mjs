// Order by depth and rows of levels, against plain sorting and the file's own interpolation.

import assert from "node:assert/strict";
import test from "node:test";
import { DepthSorter } from "../../flexgs_lightning/deploy/web/player/drawing/counting_sort.js";
import { blendAt, rowsFor } from "../../flexgs_lightning/deploy/web/player/drawing/levels.js";

function random(seed) {
  return () => ((seed = (Math.imul(seed, 1664525) + 1013904223) | 0) >>> 0) / 2 ** 32;
}

const header = { total: 4000, ratios: [0.1, 0.3, 1], counts: [400, 1200, 4000] };
const next = random(7);
const means = Float32Array.from({ length: 3 * rowsFor(4000, header.counts) }, () => 100 * (next() - 0.5) ** 3);
const axis = [0.3, -0.4, 0.866, 0.5];

/** Depths of the first `count` Gaussians, in doubles. */
function depths(count) {
  const { upper, lower, lowerCount, weight } = blendAt(count, header);
  const at = (row) => axis[0] * means[3 * row] + axis[1] * means[3 * row + 1] + axis[2] * means[3 * row + 2] + axis[3];
  return Array.from({ length: count }, (_, i) => {
    const own = at(upper + i);
    return i < lowerCount ? own + weight * (at(lower + i) - own) : own;
  });
}

test("Gaussians in front of the camera come from the farthest to the nearest", () => {
  const sorter = new DepthSorter();
  for (const count of [4000, 700, 1, 1200, 2500]) {
    const order = new Uint32Array(count);
    const visible = sorter.sort(means, blendAt(count, header), count, axis, order);
    const depth = depths(count);
    const expected = depth.filter((z) => z >= 0.01).length;
    assert.equal(visible, expected);
    const found = order.subarray(0, visible);
    assert.equal(new Set(found).size, visible);
    for (let i = 1; i < visible; i++) {
      const [before, after] = [depth[found[i - 1]], depth[found[i]]];
      assert.ok(after <= before * (1 + 1e-5), `${before} before ${after}`);
    }
  }
});

test("nothing in front of the camera is an empty order", () => {
  const behind = new Float32Array(30).fill(-1);
  const one = { total: 10, ratios: [1], counts: [10] };
  assert.equal(new DepthSorter().sort(behind, blendAt(10, one), 10, [0, 0, 1, 0], new Uint32Array(10)), 0);
});

test("equal depths keep the order of ranks", () => {
  const one = { total: 10, ratios: [1], counts: [10] };
  const order = new Uint32Array(10);
  new DepthSorter().sort(new Float32Array(30).fill(2), blendAt(10, one), 10, [0, 0, 1, 0], order);
  assert.deepEqual([...order], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test("rows are those of the levels below, and the Gaussians themselves", () => {
  for (const [count, rows] of [[1, 1], [400, 400], [401, 801], [1200, 1600], [1300, 2900], [4000, 5600]]) {
    assert.equal(rowsFor(count, header.counts), rows);
  }
});

test("levels are drawn alone, and blended in the logarithm of the ratio between them", () => {
  assert.deepEqual(blendAt(400, header), { upper: 0, lower: 0, lowerCount: 0, weight: 0 });
  assert.deepEqual(blendAt(17, header), { upper: 0, lower: 0, lowerCount: 0, weight: 0 });
  assert.deepEqual(blendAt(4000, header), { upper: 1600, lower: 0, lowerCount: 0, weight: 0 });
  const { upper, lower, lowerCount, weight } = blendAt(693, header); // about the geometric mean of 400 and 1200
  assert.deepEqual([upper, lower, lowerCount], [400, 0, 400]);
  assert.ok(Math.abs(weight - 0.5) < 1e-3);
});
