"""The dashboard pages, their files, the API documentation, and Socket.IO."""

import html
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.types import ASGIApp

from app.http.parsing import event_name_in_path
from app.http.permissions import Permissions
from app.http.problem_kinds import PROBLEM_KINDS, ProblemKind
from app.http.router_bypass import SOCKETIO_PATH
from app.http.static_files import Page, StaticFiles

# In a wheel, the files are inside the package. In a checkout and in the image, they are next to it.
STATIC = StaticFiles(next(path for parent in Path(__file__).parents if (path := parent / "static").is_dir()))
SWAGGER = StaticFiles(Path(str(files("fastapi_swagger") / "resources")))

# The Content-Security-Policy of pages. All other responses have the policy in middleware.py.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " manifest-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'"
)
_TRUSTED_TYPES = "; require-trusted-types-for 'script'; trusted-types 'none'"


def add_routes(router: APIRouter, embed_origins: Sequence[str]) -> None:
    """Add the routes of the HTML pages. Pages of these origins may show /embed in a frame."""
    _add_page(router, "/", STATIC.page("index.html"))
    _add_page(router, "/kiosk", STATIC.page("kiosk.html"))
    # Swagger UI sets innerHTML, which trusted types would forbid.
    _add_page(router, "/docs", STATIC.page("docs.html"), trusted_types="")
    _add_page(router, "/docs/errors", _errors_page())
    check_name = [Depends(event_name_in_path(b"embed"))]
    frame_ancestors = " ".join(["'self'", *embed_origins])
    _add_page(router, "/embed/{name}", STATIC.page("embed.html"), frame_ancestors, dependencies=check_name)


def page_headers(frame_ancestors: str = "'none'", trusted_types: str = _TRUSTED_TYPES) -> dict[str, str]:
    """Return the headers of a page, which pages of `frame_ancestors` may show in a frame."""
    return {"content-security-policy": f"{_PAGE_POLICY}; frame-ancestors {frame_ancestors}{trusted_types}"}


def mount_files(app: FastAPI, permissions: Permissions, socketio: ASGIApp) -> None:
    """Mount Socket.IO, Swagger UI's files and the dashboard's files, each behind its permission."""
    mounts: dict[str, ASGIApp] = {SOCKETIO_PATH: socketio, "/docs/assets": SWAGGER, "/static": STATIC}
    for path, mounted in mounts.items():
        app.mount(path, permissions.authorize_mount(path, mounted))


def _errors_page() -> Page:
    """Return the page that the `type` of an error response refers to."""
    return STATIC.page("errors.html", kinds="".join(map(_html_item, PROBLEM_KINDS)))


def _html_item(kind: ProblemKind) -> str:
    text = re.sub("`(.*?)`", r"<code>\1</code>", html.escape(kind.description))
    term = f"<dt><code>{kind.code}</code> <small>{kind.status}</small></dt>"
    return f'<div id="{kind.code}">{term}<dd><strong>{html.escape(kind.title)}.</strong> {text}</dd></div>'


def _add_page(
    router: APIRouter,
    path: str,
    page: Page,
    frame_ancestors: str = "'none'",
    trusted_types: str = _TRUSTED_TYPES,
    **options: Any,
) -> None:
    headers = page_headers(frame_ancestors, trusted_types)

    async def send_page(request: Request) -> Response:
        return page.respond(request, headers)

    router.add_api_route(path, send_page, include_in_schema=False, **options)
