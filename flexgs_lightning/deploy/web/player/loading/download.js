// One file by HTTP Range, from any place to any other: nothing twice, and on after a lost connection.

const STALLED = 20_000; // milliseconds without a byte after which a connection counts as lost
const LONGEST_WAIT = 16_000;
const FIRST_WAIT = 500;

/** What the server answers instead of the file, in words for people. */
export class ServerError extends Error {}

export class Download {
  /**
   * `tell` is called with `{ waiting }`, the seconds until the next try, when a connection is lost, and with
   * `{ waiting: 0 }` when bytes arrive again.
   */
  constructor(url, tell) {
    this.url = url;
    this.tell = tell;
    this.total = Infinity; // bytes of the file, once a server has said so
    this.ranged = true; // whether the server sends parts
    this.position = 0; // bytes handed out
    this.held = []; // received, and not handed out
    this.heldBytes = 0;
    this.kept = new Map(); // what is held at other places
    this.received = 0; // bytes that came over the network
    this.reader = null;
    this.tries = 0; // that failed one after the other
  }

  /** Go on at another place of the file. What has been received behind the old one is kept for when it is wanted. */
  seek(place) {
    if (place === this.position) return;
    if (this.heldBytes > 0) this.kept.set(this.position, this.held);
    this.close();
    this.position = place;
    this.held = this.kept.get(place) ?? [];
    this.heldBytes = this.held.reduce((sum, { length }) => sum + length, 0);
    this.kept.delete(place);
  }

  /**
   * The next `count` bytes; null if the file ends before. A request that is needed asks for the file up to
   * `limit`.
   */
  async next(count, limit) {
    while (this.heldBytes < count) {
      if (this.position + count > this.total) return null;
      try {
        await this.receive(Math.max(limit, this.position + count));
      } catch (error) {
        this.close();
        if (error instanceof ServerError) throw error;
        await this.wait();
      }
    }
    return this.take(count);
  }

  /** Read once from the connection, which is made if there is none. */
  async receive(limit) {
    if (!this.reader) await this.connect(limit);
    if (!this.reader) return;
    const timer = setTimeout(() => this.abort.abort(), STALLED);
    const { done, value } = await this.reader.read().finally(() => clearTimeout(timer));
    if (done) {
      const place = this.position + this.heldBytes;
      this.close();
      if (this.expected === Infinity) this.total = place; // of a server that has not said it
      else if (place < this.expected) throw new TypeError("the connection has ended");
      return;
    }
    this.received += value.length;
    if (this.tries > 0) this.tell({ waiting: 0 });
    this.tries = 0;
    const skipped = Math.min(this.skip, value.length);
    this.skip -= skipped;
    if (skipped < value.length) {
      this.held.push(value.subarray(skipped));
      this.heldBytes += value.length - skipped;
    }
  }

  async connect(limit) {
    const place = this.position + this.heldBytes;
    this.abort = new AbortController();
    const timer = setTimeout(() => this.abort.abort(), STALLED);
    const stop = Math.min(limit, this.total);
    const response = await fetch(this.url, {
      headers: { Range: `bytes=${place}-${stop - 1}` },
      signal: this.abort.signal,
      cache: "no-store", // a cache may hold a part of another version
    }).finally(() => clearTimeout(timer));
    const [, first, last, total] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(this.rangeOf(response)) ?? [];
    if (response.status === 206 && Number(first) === place) {
      this.setTotal(Number(total));
      this.skip = 0;
      this.expected = Number(last) + 1;
    } else if (response.status === 200) {
      this.ranged = false;
      this.setTotal(Number(response.headers.get("Content-Length")) || this.total);
      this.skip = place; // all comes again from the start
      this.expected = this.total;
    } else if (response.status === 416) {
      this.total = place; // the file ends here
      return;
    } else if (response.status >= 500) {
      throw new TypeError(`the server answers ${response.status}`);
    } else {
      throw new ServerError(`The scene's file cannot be had: the server answers ${response.status}.`);
    }
    this.reader = response.body.getReader();
  }

  rangeOf(response) {
    return response.headers.get("Content-Range") ?? "";
  }

  setTotal(total) {
    if (this.total !== Infinity && total !== this.total) {
      throw new ServerError("The scene's file has changed on the server. Reload the page for the new one.");
    }
    this.total = total;
  }

  take(count) {
    const bytes = new Uint8Array(count);
    let filled = 0;
    while (filled < count) {
      const first = this.held[0];
      const used = Math.min(first.length, count - filled);
      bytes.set(first.subarray(0, used), filled);
      filled += used;
      if (used < first.length) this.held[0] = first.subarray(used);
      else this.held.shift();
    }
    this.heldBytes -= count;
    this.position += count;
    return bytes;
  }

  close() {
    this.reader = null;
    this.abort?.abort();
  }

  /** Wait a while after a failure, longer each time; less if the network comes back. */
  async wait() {
    const milliseconds = Math.min(FIRST_WAIT * 2 ** this.tries++, LONGEST_WAIT);
    this.tell({ waiting: milliseconds / 1000 });
    await new Promise((done) => {
      const timer = setTimeout(done, milliseconds);
      self.addEventListener("online", () => (clearTimeout(timer), done()), { once: true });
    });
  }
}
