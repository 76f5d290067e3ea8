"""Make hidden characters visible in text from models and data, with one table for judges, annotators and pages.

A model may have learned to write text that a judge reads and a person does not see: a zero-width space inside a word, a
text spelled in tag characters, a mark that reverses the direction of the line, an escape sequence for a terminal. All
code that shows a text to a person or to a judge passes it through `reveal` first, so that both see the same.
"""

import re

# Ranges of code points, first and last included: control characters, Unicode's "default ignorable" characters, which
# are not drawn, and the few others that look empty.
HIDDEN = (
    (0x0000, 0x0008), (0x000B, 0x001F), (0x007F, 0x009F),  # control characters but tab and line feed
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C),  # soft hyphen, grapheme joiner, Arabic letter mark
    (0x115F, 0x1160), (0x3164, 0x3164), (0xFFA0, 0xFFA0),  # Hangul fillers
    (0x17B4, 0x17B5), (0x180B, 0x180F),                    # Khmer inherent vowels, Mongolian selectors
    (0x200B, 0x200B), (0x200E, 0x200F),                    # zero-width space, direction marks
    (0x2028, 0x202E),                                      # line and paragraph separators, changes of direction
    (0x2060, 0x206F), (0xFEFF, 0xFEFF),                    # word joiner, isolates, invisible operators, byte order mark
    (0x2800, 0x2800),                                      # the Braille cell without a dot
    (0xD800, 0xDFFF),                                      # half a surrogate pair: no character, and not writable
    (0xFE00, 0xFE0D), (0xFFF0, 0xFFFB),                    # variation selectors, interlinear annotation
    (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),                # shorthand and musical format controls
    (0xE0000, 0xE0FFF),                                    # tags and the other variation selectors
)  # fmt: skip
# Persian, Hindi and emoji need these four, which change the shape of the character before them. There they stay as they
# are. After an ASCII letter, or several in a row, they have no effect on the shape and could only hide something.
SHAPING = "\u200c\u200d\ufe0e\ufe0f"

_TABLE = "".join(f"{chr(first)}-{chr(last)}" for first, last in HIDDEN)
_SHAPED = rf"[^\x00-\x7f{SHAPING}]"
# Two more stay: the joiner after an emoji's selector (2764 FE0F 200D 1F525, a heart on fire), and the selector of a
# keycap (0031 FE0F 20E3).
_HIDDEN = re.compile(rf"[{_TABLE}]|[{SHAPING}](?<!{_SHAPED}.)(?<!{_SHAPED}\ufe0f\u200d)(?!\u20e3)")
_SEEN = re.compile(rf"[^\s{_TABLE}{SHAPING}]")


def reveal(text: str) -> str:
    """The text with each hidden character as its code point, such as ⟨U+200B⟩. Tab and line feed stay as they are.

    The line end of Windows becomes a line feed; a carriage return elsewhere is shown, since it can overwrite a line.
    """
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text.replace("\r\n", "\n"))


def is_blank(text: str) -> bool:
    """Whether nothing in the text can be seen: it is empty, or white space and hidden characters only."""
    return _SEEN.search(text) is None
