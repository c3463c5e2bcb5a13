"""Codecs: Gaussians to bytes and back. ``elastic_file`` is the package's own file, a model wherever it is cut."""
