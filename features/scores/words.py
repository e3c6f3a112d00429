"""Words in texts of every script, and whole words found in them.

A word is a run of letters, digits and their combining marks, of two characters or more; hyphens and
apostrophes within one belong to it. Scripts that put no spaces between words (Chinese, Japanese,
Thai, Lao, Khmer, Burmese) are not segmented: each two neighbouring characters count as a word, and
each Chinese character as one more. Capitals don't matter, nor how accents are encoded.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Line_Break=Complex_Context}"
LETTER = r"\p{L}\p{N}"
JOINED = rf"[[{LETTER}\p{{M}}_]--[{SPACELESS}]]"
"""What continues a word."""
JOINERS = r"'\u2019\u200c\u200d-"
"""What may stand within a word: apostrophes, the zero-width joiners, the hyphen."""
TOKEN = regex.compile(
    rf"(?V1)(?P<run>[{SPACELESS}][{SPACELESS}\p{{M}}]*)"
    rf"|(?P<word>[[{LETTER}]--[{SPACELESS}]]"
    rf"[{JOINED}{JOINERS}]*[[{LETTER}\p{{M}}]--[{SPACELESS}]])"
)
ASCII_WORD = re.compile(r"[a-z0-9](?:[a-z0-9_'-]*[a-z0-9])")
"""What TOKEN finds in ASCII, at a fraction of the time."""
IN_ASCII_WORDS = string.ascii_lowercase + string.digits + "_'-"
ENDS_NO_ASCII_WORD = "_'-"
ASCII_WORDS_ALONE = bytes(
    ord(chr(code).lower()) if chr(code).lower() in IN_ASCII_WORDS else ord(" ")
    for code in range(256)
)
"""Each byte of ASCII in lower case, a space where it is of no word."""
NO_WORD = -1
HAN = regex.compile(r"\p{Han}")
FIRST_OF_RUN = regex.compile(rf"[{SPACELESS}]")


def normalised(text: str) -> str:
    """Lower case, one space for any white space, accents composed (NFC)."""
    text = text.lower()
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def words(text: str) -> set[str]:
    """The words of a text, normalised."""
    if text.isascii():
        return set(ASCII_WORD.findall(text.lower()))
    found = set()
    for token in TOKEN.finditer(normalised(text)):
        if token["word"]:
            found.add(token["word"])
            continue
        characters = regex.findall(r"\X", token["run"])  # with their marks
        found.update(character for character in characters if HAN.match(character))
        found.update(first + second for first, second in pairwise(characters))
    return found


def words_by_text(texts: pa.Array) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The words of many texts at once, as `words` finds them.

    Args:
        texts: strings, none of them null.

    Returns:
        The different words; and for each word in a text the text's number and the word's, `[n]`
        int64 each, again where a text repeats it.
    """
    plain = pc.string_is_ascii(texts)
    ascii_rows = np.flatnonzero(plain.to_numpy(zero_copy_only=False))
    runs = pc.ascii_split_whitespace(_words_alone(texts.filter(plain)))
    encoded = pc.list_flatten(runs).dictionary_encode()
    numbers: dict[str, int] = {}
    number_of = [
        numbers.setdefault(word, len(numbers)) if len(word) > 1 else NO_WORD
        for word in pc.ascii_trim(encoded.dictionary, ENDS_NO_ASCII_WORD).to_pylist()
    ]
    word = np.array(number_of, dtype=np.int64)[encoded.indices.to_numpy()]
    text = ascii_rows[pc.list_parent_indices(runs).to_numpy()]
    kept = word != NO_WORD
    others = [
        (row, numbers.setdefault(word, len(numbers)))
        for row in np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
        for word in words(texts[int(row)].as_py())
    ]
    more = np.array(others, dtype=np.int64).reshape(-1, 2)
    return (
        list(numbers),
        np.concatenate([text[kept], more[:, 0]]),
        np.concatenate([word[kept], more[:, 1]]),
    )


def _words_alone(texts: pa.Array) -> pa.Array:
    """Texts of ASCII in lower case, with spaces for what is of no word."""
    _, ends, data = texts.buffers()
    spaced = b"" if data is None else data.to_pybytes().translate(ASCII_WORDS_ALONE)
    return pa.Array.from_buffers(
        texts.type, len(texts), [None, ends, pa.py_buffer(spaced)], offset=texts.offset
    )


def holds(text: str, phrase: str) -> bool:
    """Whether the words of a phrase stand in a text, whole and in this order.

    Args:
        text: normalised.
        phrase: normalised. At an end in a script without spaces, it may be a part of a longer run.
    """
    return phrase in text and _pattern(phrase).search(text) is not None


@lru_cache(maxsize=100_000)
def _pattern(phrase: str) -> regex.Pattern[str]:
    before = "" if FIRST_OF_RUN.match(phrase) else rf"(?<!{JOINED})"
    last = regex.findall(r"\X", phrase)[-1:]
    after = r"(?!\p{M})" if last and FIRST_OF_RUN.match(last[0]) else rf"(?!{JOINED})"
    return regex.compile(f"(?V1){before}{regex.escape(phrase)}{after}")
