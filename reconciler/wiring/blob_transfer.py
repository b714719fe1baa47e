"""Blobs to and from a control plane, for who has the credential of an intent."""

from __future__ import annotations

from reconciler.adapters.blob_http import BlobServer, Moved, Told, download, upload

__all__ = ["BlobServer", "Moved", "Told", "download", "upload"]
