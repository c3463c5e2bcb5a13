"""Drawing Gaussians: one meaning, a CUDA and a CPU backend."""
