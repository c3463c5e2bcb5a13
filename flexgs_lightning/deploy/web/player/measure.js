// "Measure this device": milliseconds that a frame takes, against the number of Gaussians.

const SHARES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
const REPEATS = 9;
const VIEWS = 3;

/**
 * Draw several views at several counts of what is loaded, and time each until it is done; `tell` is called with the
 * share of the work that is done. Returns a profile that `flexgs … --profile` reads.
 */
export async function measureDevice(player, tell) {
  const { camera, renderer, header, description } = player;
  const [before, share, automatic] = [player.camera.state, player.share, player.automatic];
  const views = description.views.length ? evenly(description.views, VIEWS) : [description.start];
  const counts = [...new Set(SHARES.map((part) => Math.max(1, Math.floor(part * player.loaded))))];
  const points = [];
  player.turn((playhead) => (playhead.playing = false));
  player.paused = true;
  try {
    for (const count of counts) {
      const times = [];
      for (const view of views) {
        camera.take(view, description.focus);
        await sorted(player, count / header.total);
        for (let i = 0; i <= REPEATS; i++) {
          const start = performance.now();
          player.draw();
          renderer.finish();
          if (i > 0) times.push(performance.now() - start); // the first one warms up
        }
      }
      times.sort((a, b) => a - b);
      points.push([count, round(times[times.length >> 1]), round(times[Math.floor(0.95 * times.length)])]);
      tell(points.length / counts.length);
    }
  } finally {
    player.paused = false;
    camera.state = before;
    player.setShare(share);
    if (automatic) player.setAutomatic(1000 / automatic.goal);
  }
  return {
    version: 1,
    device: `${renderer.device}; ${navigator.userAgent}`,
    scene: description.title,
    width: player.canvas.width,
    height: player.canvas.height,
    points: points.map(([count, median]) => [count, median]),
    p95: points.map(([count, , late]) => [count, late]),
  };
}

function evenly(list, count) {
  return list.filter((_, i) => Math.floor((i * count) / list.length) !== Math.floor(((i - 1) * count) / list.length));
}

function round(milliseconds) {
  return Number(milliseconds.toPrecision(4));
}

/** Wait for the order of a share through the camera as it stands. */
async function sorted(player, share) {
  player.setShare(share);
  while (player.answered !== player.asked) {
    player.sort();
    await new Promise((done) => setTimeout(done, 5));
  }
}
