"""A bucket on this machine: an emulator of Google Cloud Storage.

Taught the one precondition that runs rely on, and to keep a carriage return at the end of an object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import fsspec.config
import pytest
from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects


class _OnlyNew:
    """A storage that makes no object twice."""

    def __init__(self, storage: Any):
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def create_file(self, bucket: str, name: str, *rest: Any) -> None:
        if name in {entry["name"] for entry in self._storage.get_file_list(bucket)[0]}:
            raise FileExistsError(name)
        self._storage.create_file(bucket, name, *rest)


def _conditional(upload: Callable[..., Any]) -> Callable[..., Any]:
    """Heed ifGenerationMatch=0: "only if there is no such object"."""

    def wrapped(request: Any, response: Any, storage: Any) -> Any:
        if request.query.get("ifGenerationMatch") != ["0"]:
            return upload(request, response, storage)
        try:
            return upload(request, response, _OnlyNew(storage))
        except FileExistsError:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return None

    return wrapped


def _delimited(decode: Callable[..., Any]) -> Callable[..., Any]:
    """End the last part of an upload with CRLF, as RFC 2046 wants: of an LF alone a CR before it counts as a part."""

    def wrapped(*args: Any) -> Any:
        content = decode(*args)
        return content and re.sub(rb"\n(--==\w+==--\s*)\Z", rb"\r\n\1", content)

    return wrapped


@contextmanager
def emulated(port: int) -> Iterator[str]:
    """Address of a bucket that this process and those it starts find."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_media_upload", "_multipart_upload"):
            patch.setattr(objects, name, _conditional(getattr(objects, name)))
        patch.setattr(server, "_decode_raw_data", _delimited(server._decode_raw_data))
        for name in ("gather_batch_size", "nofiles_gather_batch_size"):
            patch.setitem(fsspec.config.conf, name, 1)  # the emulator serves one connection at a time
        patch.setenv("FSSPEC_GCS", '{"batch_size": 1}')  # for the processes that tests start
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("NO_GCE_CHECK", "true")
        emulator = server.create_server("localhost", port, in_memory=True, default_bucket="bucket")
        emulator.start()
        try:
            yield "gs://bucket"
        finally:
            emulator.stop()
