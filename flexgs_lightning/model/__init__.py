"""What is learned: Gaussians, and what makes them elastic."""
