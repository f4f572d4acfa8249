"""The engine's push, taken by a registry of the tests' own that speaks the protocol of the OCI distribution spec."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mtl_cloud.container.engine import Engine
from mtl_cloud.container.image import image_content
from mtl_cloud.container.registry import push_image
from mtl_cloud.errors import EngineError


class Registry(BaseHTTPRequestHandler):
    """The push half of https://github.com/opencontainers/distribution-spec (blobs in one or more pieces, manifests)."""

    protocol_version = "HTTP/1.1"
    uploads: dict[str, bytes]
    blobs: dict[str, bytes]
    manifests: dict[str, bytes]

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        known = self.blobs.get(self.path.rpartition("/")[2])
        self._answer(404 if known is None else 200, length=0 if known is None else len(known))

    def do_POST(self) -> None:
        upload = f"{self.path.rstrip('/')}/{len(self.uploads)}"
        self.uploads[upload] = b""
        self._answer(202, Location=upload, Range="0-0")

    def do_PATCH(self) -> None:
        self.uploads[self.path] += self._body()
        self._answer(202, Location=self.path, Range=f"0-{len(self.uploads[self.path]) - 1}")

    def do_PUT(self) -> None:
        if found := re.fullmatch(r"/v2/[^?]+/manifests/([^?]+)", self.path):
            self.manifests[found[1]] = self._body()
            digest = f"sha256:{hashlib.sha256(self.manifests[found[1]]).hexdigest()}"
            self._answer(201, Docker_Content_Digest=digest, Location=self.path)
            return
        upload, _, query = self.path.partition("?")
        digest = query.partition("digest=")[2].replace("%3A", ":")
        data = self.uploads.pop(upload) + self._body()
        assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        self._answer(201, Docker_Content_Digest=digest, Location=f"/v2/x/blobs/{digest}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _answer(self, status: int, *, length: int = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(length), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


@contextmanager
def registry() -> Iterator[tuple[str, type[Registry]]]:
    """Address of a registry, and what it holds."""
    kept = type("Kept", (Registry,), {"uploads": {}, "blobs": {}, "manifests": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_is_pushed_arrives_under_its_tag_layer_by_layer(engine: Engine) -> None:
    content = replace(image_content({}), base="of this test")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("hello")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    engine.ask("import", "-", content.reference, given=archive.getvalue().decode())
    with registry() as (address, kept):
        pushed = push_image(content, engine, f"{address}/team/mtl-cloud")
        try:
            assert pushed.reference == f"{address}/team/mtl-cloud:{content.tag}"
            manifest = json.loads(kept.manifests[content.tag])
            layers = [kept.blobs[layer["digest"]] for layer in manifest["layers"]]
        finally:
            with suppress(EngineError):
                engine.ask("rmi", content.reference, pushed.reference)
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as tar:
        assert tar.getnames() == ["hello"]
