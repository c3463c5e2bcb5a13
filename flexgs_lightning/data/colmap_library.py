"""pycolmap, without the handler by which its logging library would print a stack trace at every SIGTERM."""

from flexgs_lightning.signals import handlers_kept

with handlers_kept():
    import pycolmap

__all__ = ["pycolmap"]
