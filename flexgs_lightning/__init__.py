"""Elastic 3D Gaussian Splatting: train once, deploy at any size."""

import os

# GNU OpenMP threads spin at barriers by default; with torch's and numba's pools on shared cores that
# costs up to 35 times the work itself. It only has an effect before torch loads, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
