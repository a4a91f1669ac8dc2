"""Recognise requests whose response nobody sees: prefetches of browsers, link previews and other bots."""

import re

from starlette.datastructures import Headers

_PURPOSE_HEADERS = ("sec-purpose", "purpose", "x-purpose", "x-moz")
_UNSEEN = re.compile(r"prefetch|prerender|preview", re.IGNORECASE)
# Parts of the user agents of bots. Cubot is a maker of phones. Image proxies of mail and of GitHub are no bots: they
# fetch an image when somebody looks at it.
_BOT = re.compile(
    r"(?<!cu)bot|crawl|spider|slurp|externalhit|externalagent|facebookcatalog|whatsapp|embedly|iframely|mastodon"
    r"|vkshare|preview/|ia_archiver|archive\.org|google-|-google|googleother|lighthouse|validator",
    re.IGNORECASE,
)


def is_unseen(headers: Headers) -> bool:
    """Return whether a browser or a bot sent this request although nobody looks at a page.

    One with an API key is that of a program which means it.
    """
    if "authorization" in headers:
        return False
    return any(_UNSEEN.search(headers.get(name, "")) for name in _PURPOSE_HEADERS) or bool(
        _BOT.search(headers.get("user-agent", ""))
    )
