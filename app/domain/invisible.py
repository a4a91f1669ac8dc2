"""Invisible characters in names, and the emoji and words in which they have a meaning."""

import re
from unicodedata import combining

# Default_Ignorable_Code_Point of DerivedCoreProperties.txt and Emoji of emoji-data.txt in Unicode 17.0, without ASCII.
# Python's unicodedata has neither. A test compares them with Node's tables.
DEFAULT_IGNORABLE = (
    "ad 34f 61c 115f-1160 17b4-17b5 180b-180f 200b-200f 202a-202e 2060-206f 3164 fe00-fe0f feff ffa0 fff0-fff8 "
    "1bca0-1bca3 1d173-1d17a e0000-e0fff"
)
EMOJI = (
    "a9 ae 203c 2049 2122 2139 2194-2199 21a9-21aa 231a-231b 2328 23cf 23e9-23f3 23f8-23fa 24c2 25aa-25ab 25b6 25c0 "
    "25fb-25fe 2600-2604 260e 2611 2614-2615 2618 261d 2620 2622-2623 2626 262a 262e-262f 2638-263a 2640 2642 "
    "2648-2653 265f-2660 2663 2665-2666 2668 267b 267e-267f 2692-2697 2699 269b-269c 26a0-26a1 26a7 26aa-26ab "
    "26b0-26b1 26bd-26be 26c4-26c5 26c8 26ce-26cf 26d1 26d3-26d4 26e9-26ea 26f0-26f5 26f7-26fa 26fd 2702 2705 "
    "2708-270d 270f 2712 2714 2716 271d 2721 2728 2733-2734 2744 2747 274c 274e 2753-2755 2757 2763-2764 2795-2797 "
    "27a1 27b0 27bf 2934-2935 2b05-2b07 2b1b-2b1c 2b50 2b55 3030 303d 3297 3299 1f004 1f0cf 1f170-1f171 1f17e-1f17f "
    "1f18e 1f191-1f19a 1f1e6-1f1ff 1f201-1f202 1f21a 1f22f 1f232-1f23a 1f250-1f251 1f300-1f321 1f324-1f393 "
    "1f396-1f397 1f399-1f39b 1f39e-1f3f0 1f3f3-1f3f5 1f3f7-1f4fd 1f4ff-1f53d 1f549-1f54e 1f550-1f567 1f56f-1f570 "
    "1f573-1f57a 1f587 1f58a-1f58d 1f590 1f595-1f596 1f5a4-1f5a5 1f5a8 1f5b1-1f5b2 1f5bc 1f5c2-1f5c4 1f5d1-1f5d3 "
    "1f5dc-1f5de 1f5e1 1f5e3 1f5e8 1f5ef 1f5f3 1f5fa-1f64f 1f680-1f6c5 1f6cb-1f6d2 1f6d5-1f6d8 1f6dc-1f6e5 1f6e9 "
    "1f6eb-1f6ec 1f6f0 1f6f3-1f6fc 1f7e0-1f7eb 1f7f0 1f90c-1f93a 1f93c-1f945 1f947-1f9ff 1fa70-1fa7c 1fa80-1fa8a "
    "1fa8e-1fac6 1fac8 1facd-1fadc 1fadf-1faea 1faef-1faf8"
)
# The space separators (Zs) without U+0020; the blanks of braille, music, Khitan and hieroglyphs; and the marks of
# interlinear annotations.
_BLANK = "a0 1680 2000-200a 202f 205f 3000 2800 1d159 16fe4 13441-13442 fff9-fffb"


def _ranges(code_points: str) -> list[tuple[int, int]]:
    """Return the first and the last of each range of hexadecimal code points."""
    return [(int(item.split("-")[0], 16), int(item.split("-")[-1], 16)) for item in code_points.split()]


_INVISIBLE = frozenset(
    chr(code) for first, last in _ranges(f"{DEFAULT_IGNORABLE} {_BLANK}") for code in range(first, last + 1)
)

_MODIFIER, _JOINER, _JOINERS = "[\U0001f3fb-\U0001f3ff]", "\u200d", "\u200c\u200d"
_EMOJI_RANGES = "".join(f"{chr(first)}-{chr(last)}" for first, last in _ranges(EMOJI))
_EMOJI = f"[{_EMOJI_RANGES}](?:[\ufe0e\ufe0f]|{_MODIFIER})?"
# The sequences of Unicode's UTS #51: keycaps, flags of regions, and emoji that joiners combine.
_EMOJI_SEQUENCE = re.compile(
    f"[0-9#*]\ufe0f\u20e3|\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{{1,6}}\U000e007f"
    f"|{_EMOJI}(?:{_JOINER}{_EMOJI})*"
)
_ARABIC_LETTER = re.compile(
    "[\u0620-\u065f\u066e-\u06d3\u06d5-\u06dc\u06df-\u06e8\u06ea-\u06ef\u06fa-\u06ff\u0750-\u077f\u08a0-\u08ff]"
)
_VIRAMA = 9  # the canonical combining class of the marks that join consonants in Indic scripts


def has_invisible(name: str) -> bool:
    """Return whether a name has a character that shows nothing and changes nothing, or a space other than U+0020."""
    if _INVISIBLE.isdisjoint(name):
        return False
    return _has_invisible_outside_words(name) and _has_invisible_outside_words(_EMOJI_SEQUENCE.sub("*", name))


def _has_invisible_outside_words(text: str) -> bool:
    return any(c in _INVISIBLE and not _joins_letters(text, at) for at, c in enumerate(text))


def _joins_letters(text: str, at: int) -> bool:
    """Return whether this character is a joiner of a Persian or Indic word, where it changes the form of letters."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if text[at] not in _JOINERS or not before:
        return False
    if combining(before) == _VIRAMA or (after and combining(after) == _VIRAMA):
        return True
    return bool(_ARABIC_LETTER.match(before) and _ARABIC_LETTER.match(after))
