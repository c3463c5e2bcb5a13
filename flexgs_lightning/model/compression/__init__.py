"""What makes a scene small while it trains: quantisation, entropy models, masks of spherical harmonics."""
