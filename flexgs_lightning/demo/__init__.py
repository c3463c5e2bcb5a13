"""The demo: its ray-traced capture, and the command that trains on it."""
