"""Codecs: Gaussians to bytes and back. The elastic file (docs/elastic_file.md) is a model wherever cut."""
