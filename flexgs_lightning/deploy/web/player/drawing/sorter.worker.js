// Worker: keeps the means of all levels, and sorts those that are drawn by depth.

import { DepthSorter } from "./counting_sort.js";

const sorter = new DepthSorter();
let means = new Float32Array(0);

self.onmessage = ({ data }) => {
  if (data.rows !== undefined) means = new Float32Array(3 * data.rows);
  if (data.means) means.set(data.means, 3 * data.row);
  if (data.axis) {
    const order = data.order?.length >= data.count ? data.order : new Uint32Array(4 * Math.ceil(data.count / 4));
    const start = performance.now();
    const visible = sorter.sort(means, data.blend, data.count, data.axis, order);
    const { count, blend, ticket } = data;
    postMessage({ order, visible, count, blend, ticket, milliseconds: performance.now() - start }, [order.buffer]);
  }
};
