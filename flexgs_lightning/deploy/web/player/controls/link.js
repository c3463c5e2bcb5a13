// What the address after its # says: camera, quality and time, so that a link shows what its sender saw.

const DIGITS = 6;
/** What Gaussians may be coloured by; the first needs no mention. */
const MODES = ["colours", "depth", "motion"];

/** `{ view, position, quaternion, reach, lens, share, fps, time, mode }` of a fragment; what it does not say is undefined. */
export function readLink(fragment) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const numbers = (name, count) => {
    const found = (fields.get(name) ?? "").split(",").filter(Boolean).map(Number);
    return found.length === count && found.every(Number.isFinite) ? found : undefined;
  };
  const number = (name) => numbers(name, 1)?.[0];
  return {
    view: number("view"),
    position: numbers("at", 3),
    quaternion: numbers("turn", 4),
    reach: number("reach"),
    lens: number("lens"),
    share: number("share"),
    fps: number("fps"),
    time: number("time"),
    mode: MODES.find((mode) => mode === fields.get("show")),
  };
}

/** The fragment of a state as `readLink` has it. */
export function writeLink({ view, position, quaternion, reach, lens, share, fps, time, mode }) {
  const text = (values) => values.map((value) => Number(value.toPrecision(DIGITS))).join(",");
  const fields = [];
  if (view !== undefined) fields.push(`view=${view}`);
  else fields.push(`at=${text(position)}`, `turn=${text(quaternion)}`, `reach=${text([reach])}`);
  if (view === undefined && lens !== undefined) fields.push(`lens=${lens}`);
  fields.push(fps === undefined ? `share=${text([share])}` : `fps=${fps}`);
  if (time !== undefined) fields.push(`time=${text([time])}`);
  if (mode && mode !== MODES[0]) fields.push(`show=${mode}`);
  return `#${fields.join("&")}`;
}
