"""Valid and invalid names, and their stored form."""

import itertools
import json
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import invisible, names
from app.domain.names import InvalidName, event_name, stored_event_name, visitor_id

INVISIBLE = "app/domain/invisible.py"


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


EMOJI = [
    "\u2764\ufe0f",
    "\u2764",
    "\u260e\ufe0e",
    "\U0001f469\u200d\U0001f4bb",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f48b\u200d\U0001f468\U0001f3fb",
    "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\U0001f3f4\u200d\u2620\ufe0f",
    "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\U0001f1e9\U0001f1ea",
    "1\ufe0f\u20e3#\ufe0f\u20e3",
    "\u2139\ufe0f",
    "\u00a9\ufe0f",
    "\U0001f44d\U0001f3ff",
    "\u261d\ufe0f\U0001f3fd",
    "\U0001f9d1\u200d\U0001f9b0 hair",
]
WORDS = {
    "Persian": [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627",
        "\u062e\u0627\u0646\u0647\u200c\u0627\u06cc",
    ],
    "Hindi": ["\u0915\u094d\u200d\u0937", "\u0915\u094d\u200c\u0937"],
    "Bengali": ["\u09b0\u200d\u09cd\u09af\u09be\u09ac"],
    "Malayalam": ["\u0d05\u0d35\u0d28\u0d4d\u200d", "\u0d05\u0d35\u0d28\u0d4d\u200d \u0d35\u0d28\u0d4d\u0d28\u0d41"],
    "Sinhala": ["\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf"],
    "Kannada": ["\u0cb0\u0cbe\u0c9c\u0ccd\u200c\u0c95\u0cc1\u0cae\u0cbe\u0cb0\u0ccd"],
    "Nepali": ["\u0917\u0930\u094d\u200d\u092f\u094b"],
    "Urdu": ["\u0622\u067e\u200c\u06a9\u0627"],
}
LOOKALIKES = [
    "sign\u200bup",
    "signup\u200b",
    "\u200bsignup",
    "sign\u200dup",
    "sign\u200cup",
    "sign\u00adup",
    "sign\ufe0fup",
    "sign\u034fup",
    "sign\ufeffup",
    "sign\u2060up",
    "sign up".replace(" ", "\u00a0"),
    "sign\u2003up",
    "sign\u3000up",
    "sign\U000e0061up",
    "signup\U000e0100",
    "\u3164",
    "\u115f",
    "\uffa0",
    "\u2800",
    "\u2800 \u2800",
    "a\u2800b",
    "\u845b\U000e0100",
    "1\ufe0f",
    "a\u20e3\ufe0f",
    "\u2764\ufe0f\ufe0f",
    "\u2764\ufe0f\u200d",
    "\u200d\u2764\ufe0f",
    "\u2764\ufe0f\u200da",
    "\U0001f469\u200d\u200d\U0001f4bb",
    "\U0001f469\u200c\U0001f4bb",
    "\U0001f44d\U000e0061\U000e007f",
    "\U0001f3f4\U000e0067\U000e0062",
    "\U0001f3f4\U000e007f",
    "\u0633\u0644\u0627\u0645\u200c",
    "\u200c\u0633\u0644\u0627\u0645",
    "\u0633\u0644\u0627\u0645\u200c\u200c\u062f\u0646\u06cc\u0627",
    "\u0633\u0644\u0627\u0645\u200c a",
    "\u0915\u200d\u0937",
    "\u0915\u094d\u200d\u200d\u0937",
    "\u200d\u094d",
    "a\ufff9b\ufffac\ufffb",
    "\uac00\u3164",
    "\u1798\u17b4",
]

IGNORED = pytest.mark.fails_on_mutant(
    "invisible characters are valid", "app/domain/names.py", "and has_invisible(name)", "and False"
)


@pytest.mark.fails_on_mutant("emoji are invalid", INVISIBLE, '_EMOJI_SEQUENCE.sub("*", name)', "name")
@pytest.mark.fails_on_mutant("joiners are invalid", INVISIBLE, "if text[at] not in _JOINERS or not before:", "if True:")
@pytest.mark.fails_on_mutant(
    "Persian joiners are invalid", INVISIBLE, "return bool(_ARABIC_LETTER", "return bool(0 and _ARABIC_LETTER"
)
def test_invisible_characters_are_valid_where_they_have_a_meaning() -> None:
    for name in (*EMOJI, *itertools.chain(*WORDS.values())):
        assert event_name(name) == visitor_id(name) == unicodedata.normalize("NFC", name), ascii(name)
        assert event_name(f"a {name} b") == unicodedata.normalize("NFC", f"a {name} b"), ascii(name)


@IGNORED
@pytest.mark.fails_on_mutant("a joiner may be the first", INVISIBLE, " or not before:", ":")
@pytest.mark.fails_on_mutant("letters may follow a joiner", INVISIBLE, " and _ARABIC_LETTER.match(after))", ")")
@pytest.mark.fails_on_mutant("other spaces are valid", INVISIBLE, "{DEFAULT_IGNORABLE} {_BLANK}", "{DEFAULT_IGNORABLE}")
def test_a_name_that_looks_like_another_is_rejected_but_can_be_read() -> None:
    for name in LOOKALIKES:
        for rule in (event_name, visitor_id):
            with pytest.raises(InvalidName, match="invisible"):
                rule(name)
        assert stored_event_name(name) == unicodedata.normalize("NFC", name)


@IGNORED
def test_every_default_ignorable_character_and_space_is_rejected_in_a_word() -> None:
    for code in range(0x80, sys.maxunicode + 1):
        c = chr(code)
        if c in invisible._INVISIBLE or (unicodedata.category(c) == "Zs"):
            with pytest.raises(InvalidName):
                event_name(f"sign{c}up")


@given(
    st.text(max_size=20),
    st.sampled_from(["\u200b", "\u3164", "\u00a0", "\ufeff", "\u2800", "\u00ad"]),
    st.integers(0, 20),
)
def test_no_name_has_a_second_form_with_an_invisible_character(text: str, c: str, at: int) -> None:
    with pytest.raises(InvalidName):
        event_name(text[:at] + c + text[at:])


NODE = r"""const [ignorable, emoji] = JSON.parse(process.argv[1]);
const codes = (table) => table.trim().split(" ").flatMap((item) => {
  const [first, last = first] = item.split("-").map((code) => parseInt(code, 16));
  return Array.from({ length: last - first + 1 }, (_, i) => String.fromCodePoint(first + i));
});
const all = Array.from({ length: 0x110000 - 128 }, (_, i) => String.fromCodePoint(i + 128));
const listed = codes(ignorable).join();
const expected = all.filter((c) => /^\p{Default_Ignorable_Code_Point}$/u.test(c)).join();
// An older Node has no emoji of a newer Unicode.
const wrong = codes(emoji).filter((c) => /^[\P{Emoji}&&\P{Cn}]$/v.test(c));
console.log(JSON.stringify([listed === expected, wrong]));
"""


@pytest.mark.fails_on_mutant("a character is missing", INVISIBLE, '"ad 34f 61c', '"34f 61c')
def test_the_tables_are_those_of_unicode() -> None:
    tables = json.dumps([invisible.DEFAULT_IGNORABLE, invisible.EMOJI])
    output = subprocess.check_output(["node", "-e", NODE, tables], timeout=60)
    assert json.loads(output) == [True, []]
