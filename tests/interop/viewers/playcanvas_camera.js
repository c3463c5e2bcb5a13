// What the pages of PlayCanvas and of SuperSplat share: our camera in place of theirs, and patience.
import * as pc from "playcanvas";

const byColumns = (rows) => rows.map((_, i) => rows[(i % 4) * 4 + Math.floor(i / 4)]);

/** Look from there: camera-to-world in OpenGL's axes, 16 numbers by rows; projection likewise. */
export function look(entity, pose, projection, world = new pc.Mat4()) {
  const matrix = new pc.Mat4().mul2(world, new pc.Mat4().set(byColumns(pose)));
  entity.setPosition(matrix.getTranslation());
  entity.setRotation(new pc.Quat().setFromMat4(matrix));
  const own = new pc.Mat4().set(byColumns(projection));
  entity.camera.camera.calculateProjection = (target) => target.copy(own);
}

/** The picture, when two in a row are alike: sorting happens in a worker, some frames later. */
export async function settled(picture) {
  let before = null, found = await picture();
  while (found !== before) {
    before = found;
    found = await picture();
  }
  return found;
}
