"""``flexgs convert``. Its signature and docstring are the command line's help."""

import logging
from pathlib import Path

from flexgs_lightning.deploy.formats.registry import find_format, read_splats
from flexgs_lightning.deploy.render import require_free
from flexgs_lightning.model.budget import MEGABYTE

log = logging.getLogger(__name__)


def convert(source: Path, output: Path, format: str | None = None, overwrite: bool = False) -> None:
    """Write a splat file in another format: .ply, .compressed.ply, .splat, .spz, .sog or .glb.

    Positions stay in the capture's frame; SPZ and GLB files have it turned to their own. The antialiased flag
    goes along wherever the format has a place for it.

    Args:
        source: The file to read.
        output: The file to write.
        format: ply, compressed-ply, splat, spz or spz3 (SPZ version 4 or 3), sog, glb or streamed-sog; by
            default what the output's suffix means (meta.json and lod-meta.json: SOG as a folder).
        overwrite: Replace the output if it exists.
    """
    chosen = find_format(output, format)
    require_free(output, overwrite, ())
    file = read_splats(source)
    chosen.write(file, output)
    size = output.stat().st_size / MEGABYTE
    log.info(f"{output}: {len(file.splats):,} Gaussians as {chosen.description}, {size:.1f} MB")
