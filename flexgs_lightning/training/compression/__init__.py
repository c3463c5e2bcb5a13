"""Stage 3: training for bytes. The scene learns to be small, and to look well after rounding at any ratio."""

from flexgs_lightning.training.compression.options import Compression, CompressionTraining

__all__ = ["Compression", "CompressionTraining"]
