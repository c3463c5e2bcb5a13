// Which chunk of a film comes next: the first of every group, and then all that is wanted, group by group from the
// playhead on.

import { countAt } from "../egs/head.js";

const SMALL_GAP = 1 << 14; // bytes that are sooner read than a new request is answered

export class Plan {
  /** `entries` are the chunks that are there, `totals` each group's Gaussians. */
  constructor(entries, totals) {
    this.totals = totals;
    this.queues = totals.map((_, group) => entries.filter((entry) => entry.group === group));
    this.wanted = 0; // share of each group's Gaussians that is to be loaded
    this.playhead = 0; // the group that is shown
    this.inOrder = false; // whether bytes only come as they stand in the file
  }

  /** Whether no chunk is left, wanted or not. */
  get finished() {
    return this.queues.every((queue) => queue.length === 0);
  }

  /** Chunks that are wanted, the next first. */
  get next() {
    const groups = this.totals.map((_, i) => (this.playhead + i) % this.totals.length);
    const firsts = groups.flatMap((group) => this.missing(group, 0));
    const chunks = new Set([...firsts, ...groups.flatMap((group) => this.missing(group, this.wanted))]);
    if (!this.inOrder) return [...chunks];
    const last = [...chunks].reduce((most, { index }) => Math.max(most, index), -1);
    return this.queues.flat().filter(({ index }) => index <= last).sort((a, b) => a.index - b.index);
  }

  /** Chunks of a group that a share of it needs, its first in any case. */
  missing(group, share) {
    const least = countAt(share, this.totals[group]);
    return this.queues[group].filter(({ first }) => first === 0 || first < least);
  }

  /** Note that a chunk has come. */
  take(entry) {
    this.queues[entry.group] = this.queues[entry.group].filter((other) => other !== entry);
  }
}

/** Bytes of chunks in whatever order they are wanted; those that come along the way are kept. */
export class Chunks {
  constructor(download, entries) {
    this.download = download;
    this.entries = entries;
    this.ready = new Map();
  }

  /** The first of the chunks that are wanted, in one request with those close behind it; null if the file ends before. */
  async first(wanted) {
    const [entry] = wanted;
    const { download } = this;
    const limit = endOfRun(wanted);
    await this.pass(entry, limit);
    const ready = this.ready.get(entry.index);
    this.ready.delete(entry.index);
    if (ready) return ready;
    download.seek(entry.offset);
    return download.next(entry.end - entry.offset, limit);
  }

  /** Keep the chunks that have been received, or are about to be, before one. */
  async pass(entry, limit) {
    const { download, ready } = this;
    for (;;) {
      const here = this.entries.find(({ offset }) => offset === download.position);
      if (!here || here === entry) return;
      const near = !download.ranged || (entry.offset > here.offset && entry.offset - here.offset <= SMALL_GAP);
      const length = here.end - here.offset;
      if (download.heldBytes < length && !(near && !ready.has(entry.index))) return;
      const bytes = await download.next(length, limit);
      if (bytes === null) return;
      ready.set(here.index, bytes);
    }
  }
}

/** Where the chunks end that follow the first one, with no more than small gaps between them. */
function endOfRun([{ end }, ...others]) {
  for (const { offset, end: next } of others) {
    if (offset < end || offset - end > SMALL_GAP) break;
    end = next;
  }
  return end;
}
