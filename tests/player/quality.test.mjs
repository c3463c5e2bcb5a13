// Quality: the slider's scale, and automatic quality on devices of which we know the cost.

import assert from "node:assert/strict";
import test from "node:test";
import { AutomaticQuality, QualityScale } from "../../flexgs_lightning/deploy/web/player/controls/quality.js";
import { readLink, writeLink } from "../../flexgs_lightning/deploy/web/player/controls/link.js";

const scale = new QualityScale(100_000, [
  [500, 20_000],
  [10_000, 300_000],
  [100_000, 2_000_000],
]);

test("positions are logarithms of shares", () => {
  for (const [position, share] of [[0, 0.001], [1 / 3, 0.01], [2 / 3, 0.1], [1, 1]]) {
    assert.ok(Math.abs(scale.share(position) / share - 1) < 1e-9);
    assert.ok(Math.abs(scale.position(share) - position) < 1e-9);
  }
  assert.equal(new QualityScale(1, [[1, 100]]).position(1), 1);
});

test("counts are floors, megabytes those of whole chunks", () => {
  assert.equal(scale.count(0.29), 29_000);
  assert.equal(scale.count(1e-9), 1);
  assert.equal(scale.megabytes(500), 0.02);
  assert.equal(scale.megabytes(501), 0.3);
  assert.equal(scale.count(scale.shareOf(0.5, "megabytes")), 10_000);
  assert.equal(scale.count(scale.shareOf(0.001, "megabytes")), 500); // less than a picture cannot be had
  assert.equal(scale.count(scale.shareOf(7, "percent")), 7000);
});

/** What is chosen on a device where a frame takes `cost(count)` ms, shown at multiples of `tick`. */
function chosen(framesPerSecond, cost, { tick = 0, total = 1_000_000, start = 5000, frames = 4000 } = {}) {
  const automatic = new AutomaticQuality(framesPerSecond, total, start);
  const slow = [];
  for (let i = 0; i < frames; i++) {
    const milliseconds = cost(automatic.count, i);
    const shown = tick ? tick * Math.max(1, Math.ceil(milliseconds / tick - 1e-6)) : milliseconds;
    slow.push(shown > 1.2 * automatic.goal);
    automatic.frame(shown, automatic.count);
  }
  return { automatic, slow: slow.slice(-500).filter(Boolean).length };
}

test("a frame rate is held near the largest count that holds it", () => {
  for (const tick of [0, 1000 / 60]) {
    for (const each of [1e-4, 1e-3, 5e-3]) {
      const best = (1000 / 30 - 3) / each;
      const { automatic, slow } = chosen(30, (count) => 3 + each * count, { tick });
      assert.ok(automatic.count <= 1.2 * best, `${automatic.count} of ${best}`);
      assert.ok(automatic.count >= 0.6 * Math.min(best, 1_000_000), `${automatic.count} of ${best}`);
      assert.ok(slow <= 50, `${slow} slow frames`);
    }
  }
});

test("a quick device draws all, a hopeless one goes on with few", () => {
  assert.equal(chosen(60, () => 1, { tick: 1000 / 60 }).automatic.count, 1_000_000);
  const { automatic } = chosen(30, () => 200);
  assert.ok(automatic.count < 100);
});

test("it follows a device that becomes slow and recovers", () => {
  const hot = (count, i) => 3 + count * (i > 2000 ? 4e-3 : 1e-3);
  const throttled = chosen(30, hot).automatic.count;
  assert.ok(throttled < 9500 && throttled > 4000, String(throttled));
  const cool = (count, i) => 3 + count * (i < 300 ? 4e-3 : 1e-3);
  assert.ok(chosen(30, cool, { frames: 20_000 }).automatic.count > 15_000);
});

test("frames of another count teach nothing", () => {
  const automatic = new AutomaticQuality(30, 1000, 500);
  for (let i = 0; i < 50; i++) assert.equal(automatic.frame(1000, 499), false);
  assert.equal(automatic.count, 500);
});

test("a link says what it was written from", () => {
  const state = { position: [1, -2.5, 1e-7], quaternion: [0.5, 0.5, -0.5, 0.5], reach: 3.25, lens: 4, share: 0.05 };
  const absent = { view: undefined, fps: undefined, time: undefined, mode: undefined };
  assert.deepEqual(readLink(writeLink(state)), { ...state, ...absent });
  assert.equal(writeLink({ ...state, view: 3, fps: 30 }), "#view=3&fps=30");
  const moment = { ...state, time: 1.25, mode: "motion" };
  assert.deepEqual(readLink(writeLink(moment)), { ...absent, ...moment });
  assert.equal(writeLink({ ...state, view: 3, time: 0, mode: "colours" }), "#view=3&share=0.05&time=0");
});

test("what is no number in a link is not there", () => {
  const found = readLink("#at=1,2&turn=a,b,c,d&reach=Infinity&view=<script>&share=&fps=NaN&time=now&show=all");
  assert.ok(Object.values(found).every((value) => value === undefined));
});
