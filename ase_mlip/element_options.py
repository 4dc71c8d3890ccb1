"""What a command line says of elements in one word: "H=-13.6,O=-430.1"."""

from __future__ import annotations

E0_CHOICES = ("estimated", "isolated", "keep")


def parse_energies(text: str) -> str | dict[str, float]:
    """One of the words, or "H=-13.6,O=-430.1" as a mapping from symbol to eV.

    Raises:
        ValueError: neither.
    """
    if text in E0_CHOICES:
        return text
    try:
        pairs = [item.split("=") for item in text.split(",")]
        return {symbol.strip(): float(energy) for symbol, energy in pairs}
    except ValueError:
        raise ValueError(
            f"e0={text!r}: give one of {', '.join(map(repr, E0_CHOICES))}, or energies in eV such as H=-13.6,O=-430.1"
        ) from None


def parse_elements(text: str) -> dict[str, str]:
    """ "Na=F,K=F" as a mapping from symbol to symbol.

    Raises:
        ValueError: not of that form.
    """
    pairs = [item.split("=") for item in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"new_elements={text!r}: give NEW=KNOWN for each new element, such as Na=F,K=F")
    return {new.strip(): known.strip() for new, known in pairs}
