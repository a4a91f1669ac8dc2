"""Valid and invalid names, and their stored form."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import names
from app.domain.names import InvalidName, event_name


@pytest.mark.parametrize(
    "name", ["signup", "a b", "page.view:home", "ورود", "می‌خواهم", "👩‍💻", "é", "x" * 128, "...", "C++", "%2F", "<b>"]
)
def test_names_of_every_script_are_valid(name: str) -> None:
    assert event_name(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a/b",
        " a",
        "a ",
        "x" * 129,
        "a\nb",
        "a\x00",
        "\u202eabc",
        "a\u2066b",
        "\ud800",
        "\ue000",
        "a\u2028b",
        "\u0378",
        "\xa0a",
    ],
)
def test_an_invalid_name_is_rejected_with_a_reason(text: str) -> None:
    with pytest.raises(InvalidName, match="must "):
        event_name(text)


def test_no_printable_character_is_forbidden() -> None:
    """The check of a name relies on this, so a new version of Unicode must not break it."""
    printable = filter(str.isprintable, map(chr, range(sys.maxunicode + 1)))
    assert not [
        c for c in printable if unicodedata.category(c) in names._FORBIDDEN_CATEGORIES or c in names._BIDI_CONTROLS
    ]


def test_two_spellings_of_one_name_are_one_name() -> None:
    assert event_name("e\u0301") == event_name("\u00e9")


@given(st.text(max_size=140))
def test_a_name_has_one_stored_form(text: str) -> None:
    try:
        name = event_name(text)
    except InvalidName:
        return
    assert event_name(name) == name
    assert 1 <= len(name) <= 128
