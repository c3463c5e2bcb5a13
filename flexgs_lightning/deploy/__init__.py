"""What leaves the house: standard files, images, videos."""
