"""A client of one bucket of a service that speaks S3. boto3 and its errors stay in here.

Rules: nothing comes from the environment, from files of the user or from an instance's metadata
service. What fails leaves as Transient or Refused, without a key in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from reconciler.adapters.local_folder import as_refused, read_private
from reconciler.errors import GpuaasError, Refused, Transient
from reconciler.ports import Secret

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PIECE_BYTES = 1024 * 1024
COPY_PART_BYTES = 512 * 1024 * 1024
_CONNECT_S, _READ_S, _TRIES = 5.0, 60.0, 3
_CONNECTIONS = 16
_GONE = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})
_FULL = frozenset({"QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "InsufficientStorage"})


@dataclass(frozen=True)
class S3Place:
    address: str
    bucket: str
    region: str


@dataclass(frozen=True)
class S3Key:
    key_id: str
    secret: Secret


@dataclass(frozen=True)
class Part:
    number: int
    etag: str
    size_bytes: int


def read_key(place: Path) -> S3Key:
    """Two lines: access key id, secret access key. Refused for a file that others may read."""
    with as_refused(place):
        words = read_private(place).decode(errors="replace").split()
    if len(words) != 2:
        hint = "two lines: access key id, secret access key"
        message = "there is no such key in it"
        raise Refused("blob_store_no_key", message, where=str(place), hint=hint)
    return S3Key(words[0], Secret(words[1]))


class Bucket:
    """What the artifact store asks of its bucket. None stands for what is not there."""

    def __init__(self, place: S3Place, key: S3Key) -> None:
        self._place = place
        self._client = _client(place, key)
        self._copying = TransferConfig(
            multipart_threshold=COPY_PART_BYTES, multipart_chunksize=COPY_PART_BYTES
        )

    def close(self) -> None:
        self._client.close()

    def size_bytes(self, key: str) -> int | None:
        with self._told():
            try:
                return self._client.head_object(Bucket=self._place.bucket, Key=key)["ContentLength"]
            except ClientError as error:
                if _code(error) not in _GONE:
                    raise
                return None

    def open(self, key: str, start: int, end: int | None) -> Iterator[bytes] | None:
        """Bytes start..end (excluded), in pieces; there is at least one."""
        last = "" if end is None else str(end - 1)
        with self._told():
            try:
                found = self._client.get_object(
                    Bucket=self._place.bucket, Key=key, Range=f"bytes={start}-{last}"
                )
            except ClientError as error:
                if _code(error) not in _GONE:
                    raise
                return None
        return self._pieces(found["Body"])

    def put(self, key: str, body: IO[bytes]) -> None:
        with self._told():
            self._client.put_object(Bucket=self._place.bucket, Key=key, Body=body)

    def delete(self, key: str) -> None:
        with self._told():
            self._client.delete_object(Bucket=self._place.bucket, Key=key)

    def copy(self, source: str, key: str) -> None:
        """Within the service; in parts where it is large."""
        bucket = self._place.bucket
        with self._told():
            self._client.copy({"Bucket": bucket, "Key": source}, bucket, key, Config=self._copying)

    def address(self, key: str, ttl_s: float) -> str:
        with self._told():
            return self._client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self._place.bucket, "Key": key},
                ExpiresIn=max(1, int(ttl_s)),
            )

    def begin(self, key: str) -> str:
        """A multipart upload's id."""
        with self._told():
            begun = self._client.create_multipart_upload(Bucket=self._place.bucket, Key=key)
            return begun["UploadId"]

    def put_part(self, key: str, upload_id: str, number: int, body: IO[bytes]) -> None:
        with self._told():
            self._client.upload_part(
                Bucket=self._place.bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                Body=body,
            )

    def parts(self, key: str, upload_id: str) -> Sequence[Part] | None:
        """Those it has, by their numbers; None when there is no such upload any more."""
        with self._told():
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=self._place.bucket, Key=key, UploadId=upload_id
            )
            try:
                found = [one for page in pages for one in page.get("Parts", ())]
            except ClientError as error:
                if _code(error) not in _GONE:
                    raise
                return None
        return [Part(one["PartNumber"], one["ETag"], one["Size"]) for one in found]

    def complete(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        listed: Any = [{"PartNumber": one.number, "ETag": one.etag} for one in parts]
        with self._told():
            self._client.complete_multipart_upload(
                Bucket=self._place.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
            )

    def abort(self, key: str, upload_id: str) -> None:
        """Harmless when there is none."""
        with self._told():
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._place.bucket, Key=key, UploadId=upload_id
                )
            except ClientError as error:
                if _code(error) not in _GONE:
                    raise

    def _pieces(self, body: Any) -> Iterator[bytes]:
        with closing(body):
            while True:
                with self._told():
                    piece = body.read(PIECE_BYTES)
                if not piece:
                    return
                yield piece

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._refusal(error) from None
        except (BotoCoreError, HTTPClientError, OSError) as error:
            message = f"the artifact store does not answer ({type(error).__name__})"
            raise self._away(message) from None

    def _refusal(self, error: ClientError) -> GpuaasError:
        code = _code(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _FULL or status == 507:
            message = "the artifact store takes no more"
            return Transient("blob_store_full", message, where=self._where, retry_after_s=60.0)
        if status >= 500 or status == 429 or code in ("RequestTimeout", "SlowDown"):
            return self._away(f"the artifact store answers {code}")
        hints = {
            "NoSuchBucket": f"make the bucket {self._place.bucket}",
            "InvalidAccessKeyId": "look at blob_s3_key_file",
            "SignatureDoesNotMatch": "look at blob_s3_key_file",
            "AccessDenied": "that key needs to read, write, list and delete in this bucket",
        }
        message = f"the artifact store refuses: {code[:80]}"
        return Refused("blob_store_refused", message, where=self._where, hint=hints.get(code, ""))

    def _away(self, message: str) -> Transient:
        return Transient("blob_store_unreachable", message, where=self._where)

    @property
    def _where(self) -> str:
        return f"{self._place.address}/{self._place.bucket}"


def _client(place: S3Place, key: S3Key) -> S3Client:
    # By their defaults all of these come from the environment or the user's home.
    own: Any = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    config = Config(
        signature_version="s3v4",
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        retries={"total_max_attempts": _TRIES, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        proxies={},
        # Not every service knows the newer checksums; bodies are signed, hash and all.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
    )
    try:
        return boto3.session.Session(
            aws_access_key_id=key.key_id,
            aws_secret_access_key=key.secret.reveal(),
            region_name=place.region,
            botocore_session=botocore.session.Session(session_vars=own),
        ).client("s3", endpoint_url=place.address, config=config)
    except (BotoCoreError, ValueError) as error:
        hint = "look at blob_s3_address and blob_s3_region"
        message = f"no client for it ({type(error).__name__})"
        raise Refused("blob_store_refused", message, where=place.address, hint=hint) from None


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
