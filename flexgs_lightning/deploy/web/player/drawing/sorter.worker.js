// Worker: keeps what sorting needs of all groups' Gaussians at all levels, and sorts those that are drawn by depth.

import { DepthSorter } from "./counting_sort.js";
import { MovingDepthSorter } from "./moving_sorter.js";

const EDGE = 0.02; // share of the Gaussians that are nearer, or farther, than what depths as brightness tell apart

const groups = [];

self.onmessage = ({ data }) => {
  if (data.rows !== undefined) open(data);
  if (data.places) groups[data.group].places.set(data.places, groups[data.group].width * data.row);
  if (data.axis) sort(data);
};

function open({ group, rows, width, motion, near }) {
  const sorter = motion ? new MovingDepthSorter(motion, width, near) : new DepthSorter(near);
  groups[group] = { sorter, width, places: new Float32Array(width * rows) };
}

function sort({ group, axis, count, blend, ticket, order, moment, around }) {
  const { sorter, places } = groups[group];
  const ranks = order?.length >= count ? order : new Uint32Array(4 * Math.ceil(count / 4));
  const start = performance.now();
  if (moment !== undefined) Object.assign(sorter, { moment, around });
  const visible = sorter.sort(places, blend, count, axis, ranks);
  const edge = Math.floor(EDGE * visible);
  const nearness = visible > 0 ? [ranks[edge], ranks[visible - 1 - edge]].map((rank) => 1 / sorter.depthOf(rank)) : [0, 1];
  if (!(nearness[1] > nearness[0])) nearness[1] = nearness[0] * 1.001;
  const milliseconds = performance.now() - start;
  postMessage({ group, order: ranks, visible, count, blend, nearness, ticket, milliseconds }, [ranks.buffer]);
}
