"""A trained scene as a capture: photos that it takes of itself, for training without photos."""
