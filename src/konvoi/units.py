"""How quantities print: seconds, bytes, tokens, joules; and text that others have written."""

from __future__ import annotations

import unicodedata

# Control, format (bidi marks, zero width), lone surrogates, line and paragraph separators: what moves a cursor, turns
# text around or is not seen, so that something else is read than what is there.
HIDING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(0.0123), format_seconds(75), format_seconds(3725)
    ('12 ms', '1m15s', '1h02m')
    """
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{secs:02d}s"


def format_bytes(num_bytes: float) -> str:
    """
    >>> format_bytes(999), format_bytes(12_600_000)
    ('999 B', '12.6 MB')
    """
    return f"{num_bytes:.0f} B" if num_bytes < 1000 else f"{_scaled(num_bytes)}B"


def format_count(count: float) -> str:
    """
    >>> format_count(257), format_count(26_400), format_count(1_400_000)
    ('257', '26.4 k', '1.4 M')
    """
    return f"{count:.0f}" if count < 1000 else _scaled(count).rstrip()


def visible(text: str, but: str = "\t") -> str:
    r"""Of text that came from outside, one line that shows all that is in it.

    >>> visible("a\x1b[2Kb"), visible("a\u202eb\n")
    ('a\\x1b[2Kb', 'a\\u202eb\\n')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in but or not hides(one) else repr(one)[1:-1] for one in text)


def hides(character: str) -> bool:
    return unicodedata.category(character) in HIDING


def _scaled(value: float) -> str:
    suffixes = "kMGT"
    power = 0
    while power < len(suffixes) and (power == 0 or value >= 999.95):
        value /= 1000
        power += 1
    return f"{value:.1f} {suffixes[power - 1]}"
