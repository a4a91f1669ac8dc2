"""Validate event names, user ids, session ids and the texts of notes, and return their stored form."""

import unicodedata

from app.domain.invisible import has_invisible

NAME_LENGTH_MAX = 128  # characters, of an event name, a user id or a session id
NOTE_LENGTH_MAX = 200  # characters, of the text of a note

_FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
# The explicit bidirectional formatting characters of Unicode's UAX #9, which can make a name look like another one.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_SLASH = 'must not contain "/"'


class InvalidName(ValueError):
    """The text is not a valid name. The message continues the name of its field, and never contains the text."""


def event_name(text: str) -> str:
    """Return the stored form (NFC) of an event name. Raises InvalidName."""
    name = visitor_id(text)
    if "/" in name:
        raise InvalidName(_SLASH)
    return name


def note_text(text: str) -> str:
    """Return the stored form (NFC) of the text of a note: the rules of a user id, but longer. Raises InvalidName."""
    return visitor_id(text, NOTE_LENGTH_MAX)


def visitor_id(text: str, length_max: int = NAME_LENGTH_MAX) -> str:
    """Return the stored form (NFC) of a user or session id, in which "/" is allowed. Raises InvalidName."""
    name = stored_visitor_id(text, length_max)
    if not name.isascii() and has_invisible(name):
        raise InvalidName("must not contain invisible characters, or spaces other than U+0020")
    return name


def stored_event_name(text: str) -> str:
    """Return the stored form of an event name that an earlier version may have counted. Raises InvalidName.

    Earlier versions counted names with invisible characters, which must still be readable.
    """
    name = stored_visitor_id(text)
    if "/" in name:
        raise InvalidName(_SLASH)
    return name


def stored_visitor_id(text: str, length_max: int = NAME_LENGTH_MAX) -> str:
    """Return the stored form of a user or session id that an earlier version may have counted. Raises InvalidName."""
    # Normalising takes quadratic time for combining marks in the wrong order, so a far too long text is not normalised.
    is_normal = text.isascii() or len(text) > 4 * length_max
    name = text if is_normal else unicodedata.normalize("NFC", text)
    if not 1 <= len(name) <= length_max:
        raise InvalidName(f"must have 1 to {length_max} characters, not {len(name)}")
    if name in {".", ".."}:
        raise InvalidName('must not be "." or ".."')
    if name != name.strip():
        raise InvalidName("must not begin or end with a space")
    # isprintable() is a fast path: a printable text has no forbidden character, an unprintable one may still be valid.
    if not name.isprintable() and any(
        unicodedata.category(c) in _FORBIDDEN_CATEGORIES or c in _BIDI_CONTROLS for c in set(name)
    ):
        raise InvalidName("must not contain control, unassigned, private-use or bidirectional formatting characters")
    return name
