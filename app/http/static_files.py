"""Static files, read once and compressed once, and the HTML pages that refer to them.

A page refers to its files under a path that has the version of all of them: `static/v-1a2b3c4d/app.css`. A browser
keeps these for a year without asking again. Another version, which a node that was updated earlier or later has sent,
gets the present files, and a browser asks again the next time.
"""

import gzip
import hashlib
import posixpath
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_MODULE_SCRIPT = re.compile(r'<script type="module" src="((?:\.\./)?static/)([^"]+)"></script>')
_IMPORT = re.compile(r'^import [^"]*"(\.[^"]+)"', re.MULTILINE)
_VERSION = re.compile(r"v-[0-9a-f]{8}/")
_IMMUTABLE = "public, max-age=31536000, immutable"
_UNCOMPRESSED_MAX = 500  # bytes; compressing fewer saves nothing
# Python's own table depends on the system.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


class _Content:
    """A file as it is sent."""

    def __init__(self, body: bytes, media_type: str) -> None:
        self.body, self.media_type = body, media_type
        self.etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'

    @cached_property
    def compressed(self) -> bytes:
        """The compressed body, or b"" if it would not be smaller."""
        compressed = gzip.compress(self.body, 6, mtime=0) if len(self.body) > _UNCOMPRESSED_MAX else b""
        return compressed if len(compressed) < len(self.body) else b""


class StaticFiles:
    """An ASGI application that serves the files of a directory from memory."""

    def __init__(self, directory: Path) -> None:
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        self._contents = {path.relative_to(directory).as_posix(): _read(path) for path in paths}
        etags = "".join(content.etag for content in self._contents.values())
        self.version = f"v-{hashlib.sha256(etags.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix(scope["root_path"]).removeprefix("/")
        content = self._contents.get(_VERSION.sub("", name, count=1))
        if scope["type"] != "http" or content is None:
            raise HTTPException(404)
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405)
        cached = {"Cache-Control": _IMMUTABLE} if name.startswith(f"{self.version}/") else {}
        await _respond(Request(scope), content, cached)(scope, receive, send)

    def page(self, name: str, **texts: str) -> "Page":
        """Return an HTML file whose links to `static/` have the version, and whose `{names}` are replaced by texts."""
        html = _MODULE_SCRIPT.sub(self._preload_imports, self._contents[name].body.decode())
        html = re.sub(r'(?<=")((?:\.\./)?static/)', rf"\1{self.version}/", html)
        for placeholder, text in texts.items():
            html = html.replace(f"{{{placeholder}}}", text)
        return Page(html)

    def _preload_imports(self, script: re.Match[str]) -> str:
        """Return links to all modules that a script imports, so that browsers request them at once, and the script."""
        directory, module = script.groups()
        links = (
            f'<link rel="modulepreload" fetchpriority="low" href="{directory}{name}">' for name in self._imports(module)
        )
        return "\n  ".join([*links, script[0]])

    def _imports(self, module: str) -> list[str]:
        """Return the modules that a module imports, and those that they import."""
        found = [module]
        for importer in found:  # The loop appends to it.
            targets = _IMPORT.findall(self._contents[importer].body.decode())
            paths = (posixpath.normpath(f"{posixpath.dirname(importer)}/{target}") for target in targets)
            found += [path for path in dict.fromkeys(paths) if path not in found]
        return found[1:]


class Page:
    """An HTML page."""

    def __init__(self, text: str) -> None:
        self._content = _Content(text.encode(), _MEDIA_TYPES[".html"])

    def respond(self, request: Request, headers: Mapping[str, str]) -> Response:
        """Return the response to a request."""
        return _respond(request, self._content, headers)


def _read(path: Path) -> _Content:
    return _Content(path.read_bytes(), _MEDIA_TYPES.get(path.suffix, "application/octet-stream"))


def _respond(request: Request, content: _Content, headers: Mapping[str, str]) -> Response:
    all_headers = {**headers, "ETag": content.etag} | ({"Vary": "Accept-Encoding"} if content.compressed else {})
    if content.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=all_headers)
    body = content.body
    if content.compressed and "gzip" in request.headers.get("accept-encoding", ""):
        body, all_headers["Content-Encoding"] = content.compressed, "gzip"
    return Response(body, headers=all_headers, media_type=content.media_type)
