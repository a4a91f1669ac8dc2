"""The page that a browser shows for an error response, also in a small frame."""

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from string import Template

from fastapi import Response
from starlette.requests import HTTPConnection

from app.http.problem_kinds import ProblemKind

# The style is in the page, because a host name that is not allowed gets no files.
_STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --text: #14181f; --text-2: #465163; --accent: #2457d6; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #0e1218; --text: #e8ecf2; --text-2: #b6c0ce; --accent: #86abff; }
}
* { box-sizing: border-box; margin: 0; }
body { display: grid; place-content: center; min-height: 100vh; background: var(--bg); color: var(--text-2);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 32em; padding: 8px 24px 12vh; overflow-wrap: anywhere; }
h1 { margin: 16px 0 6px; color: var(--text); font-size: 26px; line-height: 1.2; letter-spacing: -.02em; }
p { text-wrap: balance; }
p::first-letter { text-transform: uppercase; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 20px; }
a { color: var(--accent); }
@media (max-height: 280px) {
  :is(img, nav) { display: none; }
  main { padding: 4px 12px; }
  h1 { margin: 0; font-size: 15px; }
  p { font-size: 12px; line-height: 1.35; }
}
"""
_DEPTH_MAX = 20  # A path of many slashes would make the page large.
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; img-src 'self'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'self'"
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title · Tally</title><link rel="icon" href="${root}static/favicon.svg"><style>$style</style>
<main><img src="${root}static/favicon.svg" alt="" width="40" height="40"><h1>$title</h1><p>$detail</p>
<nav><a href="$root">Open the dashboard</a><a href="${root}docs">API reference</a></nav></main>
""")


def problem_page(
    request: HTTPConnection, kind: ProblemKind, detail: str, headers: Mapping[str, str] | None
) -> Response:
    """Return an error response as a page without scripts, with the title and the detail of the problem details."""
    depth = min(request.scope["raw_path"].count(b"/") - 1, _DEPTH_MAX)
    root = "../" * depth or "./"  # right behind any proxy
    html = _PAGE.substitute(title=escape(kind.title), detail=escape(detail), root=root, style=_STYLE)
    policy = {"Content-Security-Policy": _POLICY, "Vary": "Accept"}
    return Response(html, kind.status, {**(headers or {}), **policy}, media_type="text/html")
