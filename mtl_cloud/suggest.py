"""Suggestions for mistyped names."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most similar to ``word``, ignoring case; an anagram wins. None when no name is similar."""
    from difflib import get_close_matches  # only on the way to an error

    by_folded = {name.casefold(): name for name in names}
    matches = get_close_matches(word.casefold(), by_folded)
    swapped = [match for match in matches if sorted(match) == sorted(word.casefold())]
    return by_folded[(swapped or matches)[0]] if matches else None


def did_you_mean(word: str, names: Iterable[str]) -> str | None:
    """``did you mean x?``, or None when no name is close."""
    name = nearest(word, names)
    return f"did you mean {name}?" if name else None
