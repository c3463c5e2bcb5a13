"""Structure from motion: from photos or a video to cameras and points, with pycolmap, step by step."""
