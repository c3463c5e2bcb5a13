// Which rows are drawn at a count: those of the level above it, blended with those of the level below.

/** Where each level's rows begin in a texture that holds all levels one after the other. */
export function levelBases(counts) {
  const bases = [0];
  for (const count of counts) bases.push(bases[bases.length - 1] + count);
  return bases;
}

/** Rows of all levels that `count` Gaussians take. */
export function rowsFor(count, counts) {
  return levelBases(counts)[counts.findIndex((end) => end >= count)] + count;
}

/**
 * Rows for the first `count` Gaussians (docs/elastic_file.md, section 9): row `upper` + rank, and for ranks
 * below `lowerCount` that much of row `lower` + rank as `weight` says.
 */
export function blendAt(count, { total, ratios, counts }) {
  const bases = levelBases(counts);
  const above = counts.findIndex((end) => end >= count);
  const ratio = count / total;
  if (above === 0 || ratio >= ratios[above]) return { upper: bases[above], lower: 0, lowerCount: 0, weight: 0 };
  return {
    upper: bases[above],
    lower: bases[above - 1],
    lowerCount: counts[above - 1],
    weight: Math.log(ratios[above] / ratio) / Math.log(ratios[above] / ratios[above - 1]),
  };
}
