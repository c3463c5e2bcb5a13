"""Stage 2: training a scene to draw at any ratio (FlexGS, Liu et al. 2025, section 3)."""

from flexgs_lightning.training.elastic.options import ElasticTraining

__all__ = ["ElasticTraining"]
