"""Durable content-addressed storage of one node; see ./layout.py for the files, ./opening.py for
what a start repairs."""

from .store import BlobStore, ScrubReport, open_store

__all__ = ["BlobStore", "ScrubReport", "open_store"]
