// The page's controls: what they do to the player, and what they say about it. Captions are set as text only.

import { measureDevice } from "./measure.js";

const FREE = "Free camera";
const MEGABYTE = 1e6;

const element = (id) => document.getElementById(id);
const whole = (number) => Math.round(number).toLocaleString("en");

export class Panel {
  /** `places` is where the camera can be sent (places.js). */
  constructor(player, places) {
    this.player = player;
    this.places = places;
    const title = player.description.title;
    element("title").textContent = title;
    document.title = title;
    element("canvas").setAttribute("aria-label", `The scene ${title}`);
    this.bindQuality();
    this.bindViews();
    this.bindButtons();
    for (const name of ["header", "change", "move"]) player.addEventListener(name, () => this.later());
    player.addEventListener("time", () => this.places.view !== this.told && this.later());
    player.addEventListener("header", () => {
      const { moves } = player.film;
      element("show").querySelector("[value=motion]").hidden = !moves;
      element("help-time").hidden = !moves;
    });
    player.addEventListener("connection", ({ detail }) => this.showConnection(detail));
    player.addEventListener("error", ({ detail }) => {
      this.failed = detail.words;
      showMessage(detail.words, player.loaded > 0);
    });
    if (matchMedia("(max-width: 40rem)").matches) element("panel").open = false;
  }

  // Quality.

  bindQuality() {
    const { player } = this;
    const quality = element("quality");
    quality.addEventListener("input", () => this.choose(player.scale.share(Number(quality.value))));
    element("amount").addEventListener("change", ({ target }) => {
      const share = player.scale.shareOf(Number(target.value), element("unit").value);
      if (share > 0) this.choose(share);
      this.show();
    });
    element("unit").addEventListener("change", () => this.show());
    const automatic = () => {
      if (element("automatic").checked) player.setAutomatic(Number(element("fps").value));
      else player.setShare(player.scale.count(player.drawn.count / player.header.total) / player.header.total);
      this.places.tell();
    };
    element("automatic").addEventListener("change", automatic);
    element("fps").addEventListener("change", () => element("automatic").checked && automatic());
  }

  choose(share) {
    this.player.setShare(share);
    this.places.tell();
  }

  // Test views.

  bindViews() {
    const { views } = this.player.description;
    element("view-controls").hidden = views.length === 0;
    const list = element("view");
    [FREE, ...views.map((view) => view.name)].forEach((name, i) => list.add(new Option(name, String(i - 1))));
    list.addEventListener("change", () => Number(list.value) >= 0 && this.places.visit(Number(list.value)));
    const step = (by) => {
      const index = this.places.view ?? (by > 0 ? -1 : views.length);
      this.places.visit((index + by + views.length) % views.length);
    };
    element("next").addEventListener("click", () => step(1));
    element("previous").addEventListener("click", () => step(-1));
    element("wipe").addEventListener("input", () => this.showPhoto());
  }

  /** Lay the photo of the view that is visited over as much of its render as the slider says. */
  showPhoto() {
    const view = this.player.description.views[this.places.view];
    const photo = element("photo");
    const wipe = element("wipe");
    element("photo-controls").hidden = !view?.photo;
    photo.hidden = !view?.photo || wipe.value === "0";
    wipe.setAttribute("aria-valuetext", `${wipe.value} % of the picture`);
    if (photo.hidden) return;
    if (photo.getAttribute("src") !== view.photo) photo.src = view.photo;
    photo.alt = `Photo ${view.name}`;
    const { clientWidth: width, clientHeight: height } = this.player.canvas;
    const scale = Math.min(width / view.width, height / view.height);
    const box = { width: scale * view.width, height: scale * view.height };
    box.left = (width - box.width) / 2;
    box.top = (height - box.height) / 2;
    for (const [name, pixels] of Object.entries(box)) photo.style[name] = `${pixels}px`;
    photo.style.clipPath = `inset(0 ${100 - Number(wipe.value)}% 0 0)`;
  }

  // Buttons.

  bindButtons() {
    const { player, places } = this;
    document.getElementsByName("mode").forEach((button) => {
      button.addEventListener("change", () => (player.input.flying = button.value === "fly" && button.checked));
    });
    element("start").addEventListener("click", () => places.start());
    element("show").addEventListener("change", ({ target }) => {
      player.setMode(target.value);
      places.tell();
    });
    element("link").addEventListener("click", async () => {
      places.write();
      const copied = await navigator.clipboard?.writeText(location.href).then(
        () => true,
        () => false,
      );
      say(copied ? "The link is copied." : "The address of this page is the link.");
    });
    element("save").addEventListener("click", () => {
      download(player.picture(), `${fileName(player)}_${player.drawn.count}_gaussians.png`);
    });
    element("measure").addEventListener("click", () => this.measure());
  }

  async measure() {
    const { player } = this;
    const button = element("measure");
    button.disabled = true;
    try {
      const profile = await measureDevice(player, (part) => say(`Measuring: ${Math.round(100 * part)} %`));
      const text = JSON.stringify(profile, null, 1);
      download(`data:application/json,${encodeURIComponent(text)}`, `${fileName(player)}_profile.json`);
      const [count, milliseconds] = profile.points[profile.points.length - 1];
      say(`${whole(count)} Gaussians take ${milliseconds} ms. The profile is downloaded.`);
    } finally {
      button.disabled = false;
    }
  }

  // What is said.

  /** Show the state once before the next frame, however often it changes until then. */
  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.show();
    });
  }

  show() {
    const { player } = this;
    const { scale, header, automatic, drawn } = player;
    element("view").value = String(this.places.view ?? -1);
    element("show").value = player.mode;
    this.told = this.places.view;
    this.showPhoto();
    if (!header || player.paused) return;
    if (player.loaded > 0) showMessage(this.failed ?? "", true);
    element("quality-controls").disabled = false;
    const count = automatic ? automatic.count : player.wanted;
    const share = count / header.total;
    const quality = element("quality");
    quality.value = String(scale.position(share));
    const amount = element("amount");
    if (document.activeElement !== amount) amount.value = String(scale.numberOf(count, element("unit").value));
    const words = `${scale.numberOf(count, "percent")} %, ${whole(count)} Gaussians, ${scale.megabytes(count).toFixed(2)} MB`;
    quality.setAttribute("aria-valuetext", words);
    element("automatic").checked = automatic !== null;
    if (automatic) element("fps").value = String(Math.round(1000 / automatic.goal));
    element("choice").textContent = automatic ? this.choice(automatic) : "";
    element("drawn").textContent = this.drawnWords();
    const total = header.ends[header.ends.length - 1][1] / MEGABYTE;
    element("loaded").textContent = `${(player.bytes / MEGABYTE).toFixed(2)} of ${total.toFixed(2)} MB`;
    const progress = element("progress");
    progress.value = player.film.progress(player.needed);
    progress.hidden = progress.value >= 1;
    element("measure").disabled = progress.value < 1 && !player.finished;
  }

  /** How many Gaussians are drawn, and which of them are to be seen at the moment. */
  drawnWords() {
    const { player } = this;
    const { drawn, film, shown, playhead, automatic } = player;
    const words = `${whole(drawn.count)} of ${whole(film.groups[shown].total)}`;
    const limited = playhead.playing && !automatic && player.pace.most < Math.min(player.loaded, player.wantedOf(shown));
    return limited ? `${words}: what can be sorted while it plays` : words;
  }

  choice(automatic) {
    const rate = `${Math.round(1000 / automatic.goal)} frames a second`;
    const count = whole(Math.min(automatic.count, this.player.header.total));
    if (!automatic.settled) return `Finding what holds ${rate} …`;
    return `${count} Gaussians hold ${rate} here.`;
  }

  showConnection({ waiting }) {
    const { bytes, header } = this.player;
    const had = header ? ` after ${(bytes / MEGABYTE).toFixed(2)} MB, which stay` : "";
    const next = waiting >= 1 ? ` in ${Math.round(waiting)} s` : "";
    element("connection").textContent = waiting ? `Connection lost${had}. Trying again${next} …` : "";
  }
}

/** A message in the middle of the page, or below a picture that is shown; none if there are no words. */
export function showMessage(words, below = false) {
  const message = element("message");
  message.classList.toggle("below", below);
  if (message.textContent !== words) message.textContent = words;
}

function say(words) {
  element("done").textContent = words;
}

function fileName(player) {
  return player.description.title.replace(/[^\p{L}\p{N}_-]+/gu, "_") || "scene";
}

function download(address, name) {
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = name;
  anchor.click();
}
