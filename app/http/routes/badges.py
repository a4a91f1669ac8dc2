"""GET /badge/{name}.svg and /event/{name}/shield.json: a number for a README or another page."""

import math
import unicodedata
from hashlib import blake2b
from html import escape
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from typing_extensions import TypedDict

from app.domain.buckets import TOTAL
from app.domain.calendar import Clock
from app.http.parsing import EventInPath, event_name_in_path
from app.stores.base import CounterStore

SHIELD_SECONDS = 300  # the shortest time for which shields.io caches

_COLORS = {"brightgreen": "44cc11", "green": "4c9a2a", "yellowgreen": "a4a61d", "yellow": "dfb317", "orange": "fe7d37"}
_COLORS |= {"red": "c9372c", "blue": "2457d6", "purple": "7048c6", "grey": "5b6472", "lightgrey": "9f9f9f"}
# The widths of Verdana's characters at 11 px, in tenths of a pixel. The others are about 70 wide.
_WIDTHS = {30: "'il", 38: " fj,.", 44: '!tIr"', 50: "()-/:;J[\\]|", 58: "?cszL", 65: "FPaekvxy", 76: "ABCKRSVXZ"}
_WIDTHS |= {84: "DGHNOQU&", 91: "#+<=>^~wM", 110: "mW@%"}
_WIDTH = {character: tenths for tenths, characters in _WIDTHS.items() for character in characters}
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{title}">'
    '<title>{title}</title><clipPath id="c"><rect width="{width}" height="20" rx="4"/></clipPath>'
    '<g clip-path="url(#c)"><path fill="#3b4350" d="M0 0h{left}v20H0z"/>'
    '<path fill="#{color}" d="M{left} 0h{right}v20H{left}z"/></g>'
    '<g font-family="Verdana,Geneva,DejaVu Sans,sans-serif" font-size="11">{label}{message}</g></svg>'
)
SVG_POLICY = {"Content-Security-Policy": "default-src 'none'; sandbox"}

BadgeEvent = Annotated[str, Depends(event_name_in_path(b"badge", b".svg"))]
Label = Annotated[str | None, Query(max_length=128, pattern=r"^[^\p{Cc}\p{Cn}\p{Co}\p{Zl}\p{Zp}]*$")]
Color = Annotated[str, Query(pattern=rf"^({'|'.join(_COLORS)}|[0-9a-fA-F]{{3}}|[0-9a-fA-F]{{6}})$")]
Value = Literal["total", "count"]
Shield = TypedDict("Shield", {"schemaVersion": int, "label": str, "message": str, "color": str, "cacheSeconds": int})


class Svg(Response):
    """An SVG image."""

    media_type = "image/svg+xml"


def add_routes(router: APIRouter, store: CounterStore, clock: Clock) -> None:
    """Add the routes of badges."""

    async def texts(event: str, label: str | None, value: Value) -> tuple[str, str, str]:
        """Return the label of a badge, its message, and both in full."""
        today = value == "count"
        found = await store.read(clock.slot().day_buckets if today else [TOTAL], [event])
        number = sum(counts.get(event, 0) for counts in found)
        label, when = event if label is None else label, " today" * today
        return label, f"{abbreviated(number)}{when}", f"{label}: {number:,}{when}"

    @router.get("/badge/{name}.svg", response_class=Svg, responses={304: {"description": "Not modified"}})
    async def draw_badge(
        request: Request,
        response: Response,
        event: BadgeEvent,
        label: Label = None,
        color: Color = "blue",
        value: Value = "total",
    ) -> Response:
        """Return an SVG badge with the all-time total, or with `value=count` today's count."""
        svg = draw(*await texts(event, label, value), color)
        etag = f'"{blake2b(svg, digest_size=8).hexdigest()}"'
        headers = {**response.headers, **SVG_POLICY, "Cache-Control": "max-age=5, must-revalidate", "ETag": etag}
        fresh = etag in request.headers.get("if-none-match", "")
        return Response(status_code=304, headers=headers) if fresh else Svg(svg, headers=headers)

    @router.get("/event/{name}/shield.json")
    async def read_shield(
        event: EventInPath, label: Label = None, color: Color = "blue", value: Value = "total"
    ) -> Shield:
        """Return the same number in the format of https://shields.io/badges/endpoint-badge."""
        label, message, _ = await texts(event, label, value)
        return Shield(schemaVersion=1, label=label, message=message, color=_rgb(color), cacheSeconds=SHIELD_SECONDS)


def abbreviated(number: int) -> str:
    """Return a number as shields.io writes it: 999, 1.2k, 12k, 1M."""
    for unit, power in (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 1000)):
        # The threshold is where the number would be rounded to 1000 of the smaller unit.
        if number >= power - power // 2000:
            tenths = (10 * number + power // 2) // power
            return f"{tenths / 10}{unit}" if tenths < 100 and tenths % 10 else f"{(number + power // 2) // power}{unit}"
    return str(number)


def draw(label: str, message: str, title: str, color: str) -> bytes:
    """Return the SVG of a badge. `title` is its text for screen readers; `color` a name or 3 or 6 hex digits."""
    color = _rgb(color)
    left, right = (_width(text) + 10 if text else 0 for text in (label, message))
    r, g, b = bytes.fromhex(color)
    # The luma of ITU-R BT.601: light text on dark colours, dark text on light ones.
    text_color = "fff" if 299 * r + 587 * g + 114 * b < 140_000 else "10141c"
    parts = {"label": _text(5, label, "fff"), "message": _text(left + 5, message, text_color)}
    return _SVG.format(width=left + right, title=escape(title), left=left, right=right, color=color, **parts).encode()


def _rgb(color: str) -> str:
    return _COLORS.get(color, color if len(color) == 6 else "".join(digit * 2 for digit in color))


def _text(x: int, text: str, color: str) -> str:
    """Return a text element whose width does not depend on the reader's fonts."""
    fit = f'textLength="{_width(text)}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x}" y="14" fill="#{color}" {fit}>{escape(text)}</text>' if text else ""


def _width(text: str) -> int:
    return math.ceil(sum(_WIDTH.get(character) or _unlisted(character) for character in text) / 10)


def _unlisted(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0  # the character is drawn together with another one
    return 110 if unicodedata.east_asian_width(character) in "WF" else 70
