"""The artifact store of this process: a folder, or a service that speaks S3."""

from __future__ import annotations

from typing import cast

from reconciler.errors import Refused
from reconciler.ports import BlobStore
from reconciler.settings import Settings
from reconciler.wiring.ports import OnDemand


def open_blob_store(settings: Settings) -> BlobStore:
    """What `blob_s3_address` names, else `blob_dir`, opened by its first use. Harmless to open
    more than once.
    """
    return cast(BlobStore, OnDemand(lambda: _open(settings)))


def _open(settings: Settings) -> BlobStore:
    folder = settings.blob_dir or settings.state_dir / "blobs"
    if not settings.blob_s3_address:
        from reconciler.adapters.blobs_folder import FolderBlobs  # noqa: PLC0415

        return FolderBlobs(folder)
    if settings.blob_s3_key_file is None:
        raise Refused(
            "blob_store_no_key",
            "the artifact store's key is not known",
            where=settings.blob_s3_address,
            hint="set blob_s3_key_file",
        )
    try:
        from reconciler.adapters.blobs_s3 import S3Blobs, S3Place, read_key  # noqa: PLC0415
    except ImportError:
        hint = "pip install 'gpuaas[s3]'"
        raise Refused("blob_store_no_client", "boto3 is not installed here", hint=hint) from None

    place = S3Place(
        address=settings.blob_s3_address,
        bucket=settings.blob_s3_bucket,
        region=settings.blob_s3_region,
    )
    return S3Blobs(place, read_key(settings.blob_s3_key_file), folder)
