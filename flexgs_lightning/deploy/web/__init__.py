"""The scene as a folder of static files with a player of our own, and a small server to try it out."""
