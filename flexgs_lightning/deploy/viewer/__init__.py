"""The viewer in the browser, served by viser."""
