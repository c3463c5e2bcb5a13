// What the decoder of a group of Gaussians knows from the start (docs/elastic_file.md, sections 1 and 10.2).

import { check } from "./reader.js";
import { ColumnSet, FEATURES, ROW, RULES, STEPS, WIDTH } from "./rows.js";

const MOST_LEVELS = 32;
const MOST_WEIGHT = 1 << 20;
const ROUNDING = 1e-12; // 0.29 * 100 is 28.999999999999996 in floating point
const PATHS = ["none", "polynomial", "bases", "free_bases"];
const MOST_DEGREE = 6;
const MOST_BASES = 32;
const KNOTS = [4, 1024];

/** floor(ratio * total), where the product may fall short of an integer by rounding. */
export function countAt(ratio, total) {
  return Math.min(Math.floor(ratio * total * (1 + ROUNDING)), total);
}

/** SH degree, filter and background, as they stand at a film's beginning. */
export function readTraits(reader) {
  const [degree, antialiased] = reader.array("Uint8", 2);
  return { ...traits(degree, antialiased), background: reader.floats(3) };
}

function traits(degree, antialiased) {
  check(degree <= 3, "SH degree", degree);
  check(antialiased <= 1, "antialiased", antialiased);
  return { degree, antialiased: antialiased === 1 };
}

/** How many numbers the harmonics of a degree take beside the constant ones. */
export function harmonicWidth(degree) {
  return 3 * ((degree + 1) ** 2 - 1);
}

/** The head of a scene that stands still, which is mixed with its traits. */
export function readStillHead(reader, total) {
  const [degree, antialiased, levels, cellBits] = reader.array("Uint8", 4);
  const look = traits(degree, antialiased);
  const width = harmonicWidth(degree);
  const background = reader.floats(3);
  const places = readPlaces(reader, levels, cellBits, width);
  const ratios = reader.array("Float64", levels);
  const numbers = { ...places, width, stride: ROW, features: FEATURES, ...readRules(reader, RULES, FEATURES) };
  numbers.still = new ColumnSet(0, WIDTH, reader.array("Int16", WIDTH * (WIDTH + 1)));
  Object.assign(numbers, readTransform(reader, width, numbers.components));
  return { ...look, background, head: { ...levelsOf(ratios, total), numbers, motion: null } };
}

/** The head of a group of a film of `total` Gaussians, which fills the reader. */
export function readGroupHead(reader, { degree }, total) {
  const [levels, cellBits] = reader.array("Uint8", 2);
  const width = harmonicWidth(degree);
  const places = readPlaces(reader, levels, cellBits, width);
  const motion = readMotion(reader);
  const ratios = reader.array("Float64", levels);
  const columns = columnsOf(motion);
  const moving = columns.reduce((sum, { count }) => sum + count, 0);
  const units = reader.floats(moving);
  check(units.every((unit) => unit > 0), "units of motion", units);
  const features = FEATURES + (motion.lives ? 1 : 0);
  const numbers = { ...places, width, stride: ROW + moving, features, ...readRules(reader, RULES + moving, features) };
  numbers.still = new ColumnSet(0, WIDTH, reader.array("Int16", WIDTH * (WIDTH + 1)));
  numbers.moving = new ColumnSet(ROW, moving, reader.array("Int16", moving * (moving + 1)));
  Object.assign(numbers, readTransform(reader, width, numbers.components));
  const bases = motion.knots * motion.count;
  motion.shifts = Float64Array.from(reader.floats(3 * bases));
  motion.turns = Float64Array.from(reader.floats(4 * bases));
  check(reader.left === 0, "length of a group's head", `${reader.left} bytes more`);
  motion.units = Float32Array.from(units);
  motion.places = placesOf(columns);
  return { ...levelsOf(ratios, total), numbers, motion: moving > 0 ? motion : null };
}

function readPlaces(reader, levels, cellBits, width) {
  check(levels >= 1 && levels <= MOST_LEVELS, "levels", levels);
  check(cellBits >= 1 && cellBits <= 16, "bits of a cell", cellBits);
  const components = reader.number("Int32");
  check(components >= 0 && components <= width, "components", components);
  const origin = Float32Array.from(reader.floats(3));
  const meansUnit = reader.floats(1)[0];
  check(meansUnit > 0, "units", meansUnit);
  const centre = reader.array("Int32", 3);
  check(centre.every((place) => Math.abs(place) < 1 << 26), "centre", centre);
  return { cellBits, components, origin, meansUnit, centre };
}

/** How a group moves; bases and units come later. */
function readMotion(reader) {
  const [path, varies, size] = reader.array("Uint8", 3);
  check(path < PATHS.length, "path", path);
  check(varies <= 1, "opacity that varies", varies);
  const knots = reader.number("Uint16");
  const least = reader.floats(1)[0];
  const [smallest, largest] = [[0, 0], [1, MOST_DEGREE], [1, MOST_BASES], [1, MOST_BASES]][path];
  check(size >= smallest && size <= largest, "degree or number of bases", size);
  check(path >= 2 ? knots >= KNOTS[0] && knots <= KNOTS[1] : knots === 0, "knots", knots);
  check(varies ? least > 0 && least < 1 : least === 0, "least opacity", least);
  const [degree, count] = path === 1 ? [size, 0] : [0, size];
  return { path: PATHS[path], degree, count, knots, lives: varies === 1, least };
}

/** Attributes of a motion, in the order of their columns (section 10.3). */
function columnsOf({ path, degree, count, lives }) {
  const life = lives ? [{ name: "time_scales", count: 1 }, { name: "time_centers", count: 1 }] : [];
  if (path === "free_bases") life.push({ name: "real_parts", count: 1 });
  if (path === "polynomial") return [...life, { name: "motion", count: 3 * degree }, { name: "omega", count: 4 }];
  return path === "none" ? life : [...life, { name: "coefficients", count }];
}

/** First column of each attribute of a motion, and the column behind its last, by name. */
function placesOf(columns) {
  let first = ROW;
  return Object.fromEntries(columns.map(({ name, count }) => [name, [first, (first += count)]]));
}

function readRules(reader, rules, features) {
  const weights = Float64Array.from(reader.array("Int32", rules * features));
  check(weights.every((weight) => Math.abs(weight) <= MOST_WEIGHT), "rule", "a larger weight");
  const bounds = reader.array("Uint8", 2 * rules);
  for (let rule = 0; rule < rules; rule++) {
    const [low, high] = bounds.slice(2 * rule, 2 * rule + 2);
    check(low <= high && high < STEPS, "step classes", high);
  }
  return { weights, bounds };
}

function readTransform(reader, width, components) {
  const scales = Float32Array.from(reader.floats(width));
  return { scales, columns: Int8Array.from(reader.array("Int8", components * width)) };
}

function levelsOf(ratios, total) {
  const counts = ratios.map((ratio) => countAt(ratio, total));
  const ascending = counts.every((count, i) => count > (i ? counts[i - 1] : 0));
  check(ascending && ratios[ratios.length - 1] === 1, "ratios", ratios);
  const rows = counts.reduce((sum, count) => sum + count, 0);
  check(rows <= 3 * total, "rows of all levels", rows);
  return { total, ratios, counts };
}
