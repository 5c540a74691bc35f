"""Texts as words, in any language."""

import functools
import re
import unicodedata

# words


_ASCII_WORD = re.compile("[a-z0-9]+")
_ONE_CHARACTER = "\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Han: written without blanks, so that each character counts as a word."""

_BMP = 0x10000
"""Marks beyond it, of historic scripts, would make the search ten times slower."""


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, in lower case; everything else parts words and is dropped.

    ``Well-known`` and ``well @-@ known`` are the same two words, ``don't`` and ``don 't`` as well. Unicode is composed
    (NFKC) first. A kana or Han character is a word of its own.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _unicode_word().findall(unicodedata.normalize("NFKC", text).casefold())


@functools.cache
def _unicode_word() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(_BMP)) if unicodedata.category(c)[0] == "M")
    letters = f"[^\\W_{_ONE_CHARACTER}]"
    return re.compile(f"[{_ONE_CHARACTER}]|{letters}+(?:[{marks}]+{letters}*)*")
