"""Durable content-addressed storage of one node; see ./layout.py for the files, ./opening.py for
what a start repairs."""

from .disk import FullDisk, no_step
from .store import BlobStore, ScrubReport, open_store

__all__ = ["BlobStore", "FullDisk", "ScrubReport", "no_step", "open_store"]
