"""A batch as plain text: one event name per line. Text of another format is rejected, instead of becoming names."""

import base64
import re

import msgspec

from app.http.errors import Problem
from app.http.problem_kinds import INVALID_REQUEST, UNSUPPORTED_MEDIA_TYPE

# curl sends the first one by default. Without a Content-Type, the type is "".
_FORM_TYPE = "application/x-www-form-urlencoded"
_TYPES = {_FORM_TYPE, "text/plain", "application/octet-stream", ""}

_FORM = re.compile(r"=|%[0-9A-Fa-f]{2}")
# How JSON strings, XML, YAML, and CSV with a header begin.
_OTHER_FORMAT = re.compile(r'"|<[?!/A-Za-z]|---|- |(event|eventName|name)s?\s*([,;]|:(\s|$))')
_JSON_BATCH = re.compile(rb'\s*(\[\s*[\[{"]|\{\s*")')
_LINE_LENGTH_MAX = 1024  # far longer than a name

_ADVICE = "; send a JSON array, or one event name per line as text/plain"


def lines_of(text: str) -> list[str]:
    """Return the lines of a text without byte order marks, and without blank lines."""
    lines = (line.lstrip("\ufeff").removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip()]


def parse_names(text: str, content_type: str) -> list[str]:
    """Return the names in a text. Raises Problem (415, 422) if its type or its content is of another format."""
    names = lines_of(text)
    if not names:
        return []
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in _TYPES and "json" not in media_type:
        raise Problem(UNSUPPORTED_MEDIA_TYPE, "the type of the body is not that of a list of event names" + _ADVICE)
    first, is_one = names[0][:_LINE_LENGTH_MAX], len(names) == 1
    if is_one and media_type == _FORM_TYPE and _FORM.search(first):
        raise Problem(INVALID_REQUEST, "the body is a form, not a list of event names" + _ADVICE)
    if _OTHER_FORMAT.match(first) or _is_base64_batch(first) or (is_one and _is_json(first)):
        raise Problem(INVALID_REQUEST, "the body is not a list of event names" + _ADVICE)
    return names


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_base64_batch(line: str) -> bool:
    try:
        return bool(_JSON_BATCH.match(base64.b64decode(line[: len(line) // 4 * 4], validate=True)))
    except ValueError:
        return False
