// The page's beginning: reads scene.json, and puts player and controls together.

import { DeviceError } from "./drawing/textures.js";
import { Panel, showMessage } from "./panel.js";
import { Places } from "./places.js";
import { Player } from "./player.js";
import { Timeline } from "./timeline.js";

async function begin() {
  const response = await fetch("scene.json");
  if (!response.ok) throw new Error(`The page's scene.json cannot be had: the server answers ${response.status}.`);
  const description = await response.json();
  const canvas = document.getElementById("canvas");
  const player = new Player(canvas, description, document.baseURI);
  canvas.addEventListener("webglcontextlost", () => {
    showMessage("The graphics device has stopped. Reload the page to go on.");
  });
  const places = new Places(player);
  new Panel(player, places);
  new Timeline(player);
  showMessage("Loading the scene …");
  window.flexgs = { player, places }; // for the console, and for pages that embed this one
}

begin().catch((error) => {
  showMessage(error instanceof DeviceError ? error.message : `The scene cannot be shown. ${error.message}`);
});
