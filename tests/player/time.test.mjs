// Time: the playhead, which group of a film it is in, what is loaded first, and sorting of what moves.

import assert from "node:assert/strict";
import test from "node:test";
import { Playhead } from "../../flexgs_lightning/deploy/web/player/controls/playhead.js";
import { SortingPace } from "../../flexgs_lightning/deploy/web/player/controls/quality.js";
import { MovingDepthSorter } from "../../flexgs_lightning/deploy/web/player/drawing/moving_sorter.js";
import { trajectoriesAt } from "../../flexgs_lightning/deploy/web/player/drawing/trajectories.js";
import { Film } from "../../flexgs_lightning/deploy/web/player/film.js";
import { Chunks, Plan } from "../../flexgs_lightning/deploy/web/player/loading/plan.js";
import { placeWidth } from "../../flexgs_lightning/deploy/web/player/loading/row_layout.js";

const near = (found, expected) => assert.ok(Math.abs(found - expected) < 1e-6, `${found} and not ${expected}`);

test("time goes on at a speed, and around the ends where it loops", () => {
  const head = new Playhead({ seconds: 4, frames: 100 });
  head.advance(1);
  assert.equal(head.time, 0);
  head.toggle();
  head.advance(1);
  near(head.time, 0.25);
  head.speed = 2;
  head.advance(1.6);
  near(head.time, 0.05);
  head.speed = -1;
  head.advance(1);
  near(head.time, 0.8);
  assert.ok(head.playing);
});

test("without a loop a film ends, and begins again when it is played again", () => {
  const head = new Playhead({ seconds: 2, frames: 10 });
  head.loop = false;
  head.toggle();
  head.advance(3);
  assert.deepEqual([head.time, head.playing, head.frame], [1, false, 9]);
  head.toggle();
  assert.deepEqual([head.time, head.playing], [0, true]);
});

test("steps stop at frames", () => {
  const head = new Playhead({ seconds: 2, frames: 60 });
  head.toggle();
  head.advance(0.51);
  assert.equal(head.frame, 15);
  head.step(1);
  assert.deepEqual([head.time, head.playing], [16 / 60, false]);
  head.seek(0);
  head.step(-1);
  near(head.time, 59 / 60);
  head.loop = false;
  head.step(1);
  near(head.time, 59 / 60);
});

test("counts give way while sorting is slow, and come back", () => {
  const pace = new SortingPace();
  let count = 100_000;
  for (let i = 0; i < 30; i++) {
    const drawn = Math.min(count, pace.most);
    pace.learn(drawn, drawn * 2e-3); // 200 ms for all
  }
  assert.ok(pace.most * 2e-3 <= 60 && pace.most * 2e-3 > 25, String(pace.most));
  for (let i = 0; i < 60; i++) pace.learn(Math.min(count, pace.most), Math.min(count, pace.most) * 1e-4);
  assert.ok(pace.most >= count);
});

const groups = [
  { total: 1000, available: 1000, ends: [[100, 500], [1000, 3000]] },
  { total: 2000, available: 2000, ends: [[200, 400], [2000, 4400]] },
];
const film = new Film({ moves: true, seconds: 4, frames: 120, bounds: [0, 0.25, 1], groups });

test("a time lies in one group, and the last one holds the end", () => {
  assert.deepEqual([0, 0.2499, 0.25, 1].map((time) => film.at(time)), [0, 0, 1, 1]);
  near(film.within(1, 0.625), 0.5);
  assert.deepEqual([film.within(0, 0.9), film.within(1, 0.1)], [1, 0]);
});

test("a share is one of each group, and its bytes are those of all", () => {
  assert.equal(film.total, 2000);
  assert.deepEqual([0, 1].map((group) => film.countIn(group, 0.1)), [100, 200]);
  assert.deepEqual(film.ends, [[200, 900], [2000, 7400]]);
  film.groups[0].loaded = 1000;
  near(film.progress(0.1), 100 / 300);
});

/** Chunks of three groups, as an encoder puts them: by the share that stands before them. */
function chunksOfFilm() {
  const entries = [];
  let offset = 1000;
  for (const stop of [100, 300, 1000]) {
    for (const group of [0, 1, 2]) {
      const first = { 100: 0, 300: 100, 1000: 300 }[stop];
      entries.push({ index: entries.length, group, first, stop, offset, end: (offset += 100 * stop) });
    }
  }
  return entries;
}

test("first chunks of all groups come first, then the groups from the playhead on", () => {
  const plan = new Plan(chunksOfFilm(), [1000, 1000, 1000]);
  Object.assign(plan, { wanted: 1, playhead: 1 });
  const found = [];
  while (!plan.finished) {
    const [entry] = plan.next;
    found.push([entry.group, entry.stop]);
    plan.take(entry);
    if (found.length === 5) plan.playhead = 0; // the film goes on
  }
  assert.deepEqual(found.slice(0, 3), [[1, 100], [2, 100], [0, 100]]);
  assert.deepEqual(found.slice(3, 7), [[1, 300], [1, 1000], [0, 300], [0, 1000]]);
  assert.equal(found.length, 9);
});

test("no more comes than is wanted; without ranges, all that stands before it", () => {
  const plan = new Plan(chunksOfFilm(), [1000, 1000, 1000]);
  Object.assign(plan, { wanted: 0.2, playhead: 0 });
  assert.deepEqual(plan.next.map(({ stop }) => stop), [100, 100, 100, 300, 300, 300]);
  plan.inOrder = true;
  assert.deepEqual(plan.next.map(({ index }) => index), [0, 1, 2, 3, 4, 5]);
});

test("bytes that have come are not asked for again, in whatever order chunks are wanted", async () => {
  const entries = chunksOfFilm();
  const asked = [];
  const download = {
    ranged: true, position: 1000, heldBytes: 12_000, // the first chunks have come with the header
    async next(count) {
      asked.push([this.position, this.position + count]);
      this.position += count;
      this.heldBytes = Math.max(0, this.heldBytes - count);
      return new Uint8Array(count);
    },
    seek(place) { Object.assign(this, { position: place, heldBytes: 0 }); },
  }; // prettier-ignore
  const chunks = new Chunks(download, entries);
  const plan = new Plan(entries, [1000, 1000, 1000]);
  Object.assign(plan, { wanted: 1, playhead: 2 });
  while (!plan.finished) {
    const wanted = plan.next;
    assert.equal((await chunks.first(wanted)).length, wanted[0].end - wanted[0].offset);
    plan.take(wanted[0]);
  }
  asked.sort((a, b) => a[0] - b[0]);
  asked.slice(1).forEach(([start], i) => assert.ok(start >= asked[i][1]));
  assert.equal(asked.reduce((sum, [start, end]) => sum + end - start, 0), entries[8].end - 1000);
});

// Sorting.

function random(seed) {
  return () => ((seed = (Math.imul(seed, 1664525) + 1013904223) | 0) >>> 0) / 2 ** 32;
}

const next = random(5);
const axis = [0.3, -0.4, 0.866, 4];
const COUNT = 300;
const all = { upper: 0, lower: 0, lowerCount: 0, weight: 0 };
const spread = (count, size) => Float64Array.from({ length: count }, () => size * (next() - 0.5));
const BASES = { count: 3, knots: 6, shifts: spread(54, 2), turns: spread(72, 1), lives: false };
const KINDS = {
  polynomial: { path: "polynomial", degree: 3, count: 0, lives: true },
  bases: { path: "bases", ...BASES },
  free_bases: { path: "free_bases", ...BASES },
};

/** Place of a Gaussian in time, straight from docs/elastic_file.md, section 10.5. */
function placeAt(motion, numbers, time) {
  const mean = [...numbers.slice(0, 3)];
  if (motion.path === "polynomial") {
    const d = time - numbers[12];
    return mean.map((m, k) => m + numbers[3 + k] * d + numbers[6 + k] * d ** 2 + numbers[9 + k] * d ** 3);
  }
  const { shifts, turns } = trajectoriesAt(motion, time);
  const mixed = (points, width, k) => [0, 1, 2].reduce((sum, j) => sum + numbers[3 + j] * points[width * j + k], 0);
  const moved = [0, 1, 2].map((k) => mixed(shifts, 3, k));
  if (motion.path === "free_bases") return mean.map((m, k) => m + moved[k]);
  let [x, y, z, w] = [0, 1, 2, 3].map((k) => mixed(turns, 4, k) + (k === 3 ? 1 : 0));
  const size = Math.hypot(x, y, z, w);
  [x, y, z, w] = [x / size, y / size, z / size, w / size];
  const matrix = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ];
  return matrix.map((row, k) => row.reduce((sum, r, i) => sum + r * mean[i], moved[k]));
}

for (const [name, motion] of Object.entries(KINDS)) {
  test(`Gaussians that move (${name}) are sorted where they are, and only while they live`, () => {
    const width = placeWidth(motion);
    const places = new Float32Array(COUNT * width);
    for (let i = 0; i < COUNT; i++) {
      for (let k = 0; k < width - 2; k++) places[i * width + k] = next() - 0.5;
      places[i * width + width - 2] = motion.lives ? next() : 0.5;
      places[i * width + width - 1] = motion.lives ? 0.4 * next() : Infinity;
    }
    const sorter = new MovingDepthSorter(motion, width);
    for (const moment of [0, 0.37, 1]) {
      Object.assign(sorter, { moment, around: 0 });
      const order = new Uint32Array(COUNT);
      const visible = sorter.sort(places, all, COUNT, axis, order);
      const rows = Array.from({ length: COUNT }, (_, i) => places.slice(i * width, (i + 1) * width));
      const lives = rows.map((row) => Math.abs(moment - row[width - 2]) <= row[width - 1]);
      const depth = rows.map((row) => placeAt(motion, row, moment).reduce((sum, p, k) => sum + axis[k] * p, axis[3]));
      assert.equal(visible, lives.filter((alive, i) => alive && depth[i] >= 0.01).length);
      for (let i = 1; i < visible; i++) {
        assert.ok(depth[order[i]] <= depth[order[i - 1]] * (1 + 1e-5));
        assert.ok(lives[order[i]]);
      }
      if (visible) near(sorter.depthOf(order[0]) / depth[order[0]], 1);
    }
  });
}
