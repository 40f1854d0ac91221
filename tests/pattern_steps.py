"""How much work a regular expression has with a text, counted: Python's `re` does not say.

A backtracking matcher over the parsed pattern, for texts of some hundred characters. It tries what `re`
tries, without its short cuts, so a count is an upper bound; how it grows with the text tells a pattern that a
caller could stop us with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

op: Any = import_module("re._constants")  # of this very Python: neither has stubs
parser: Any = import_module("re._parser")
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d", op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s", op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w", op.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


class TooMany(Exception):
    """More steps than were allowed."""


def steps(pattern: re.Pattern[Any], text: str, *, whole: bool = False, most: int = 300_000) -> int:
    """Steps of a search that finds every match, as `re.finditer` does; raises TooMany.

    whole  of `re.fullmatch` instead
    """
    search = _Search(pattern, text, most)
    return search.run_whole() if whole else search.run()


class _Search:
    def __init__(self, pattern: re.Pattern[Any], text: str, most: int) -> None:
        source = pattern.pattern
        written = source.decode("latin-1") if isinstance(source, bytes) else source
        self.tree = list(parser.parse(written, pattern.flags))
        self.flags, self.text, self.most, self.taken = pattern.flags, text, most, 0

    def run(self) -> int:
        at = 0
        while at <= len(self.text):
            end = next(self._all_of(self.tree, at, self.flags), None)
            at = at + 1 if end is None or end == at else end
        return self.taken

    def run_whole(self) -> int:
        ends = self._all_of(self.tree, 0, self.flags)
        next((end for end in ends if end == len(self.text)), None)
        return self.taken

    def _all_of(self, items: list[Any], at: int, flags: int) -> Iterator[int]:
        """Where a sequence may end that begins at `at`, in the order in which `re` would come there."""
        if not items:
            yield at
            return
        kind, said = items[0]
        for end in self._one(kind, said, at, flags):
            yield from self._all_of(items[1:], end, flags)

    def _one(self, kind: Any, said: Any, at: int, flags: int) -> Iterator[int]:
        self.taken += 1
        if self.taken > self.most:
            raise TooMany
        if kind is op.BRANCH:
            for branch in said[1]:
                yield from self._all_of(list(branch), at, flags)
        elif kind is op.SUBPATTERN:
            yield from self._all_of(list(said[3]), at, (flags | said[1]) & ~said[2])
        elif kind is op.ATOMIC_GROUP:
            yield from self._first(self._all_of(list(said), at, flags))
        elif kind is op.MAX_REPEAT:
            yield from self._repeat(said, at, flags, 0)
        elif kind is op.POSSESSIVE_REPEAT:
            yield from self._first(self._repeat(said, at, flags, 0))
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            if self._holds(said, at, flags) is (kind is op.ASSERT):
                yield at
        elif kind is op.AT:
            if self._is_at(said, at, flags):
                yield at
        elif at < len(self.text) and self._is(kind, said, self.text[at], flags):
            yield at + 1

    def _repeat(self, said: Any, at: int, flags: int, done: int) -> Iterator[int]:
        least, most, items = said
        if done < most:
            for end in self._all_of(list(items), at, flags):
                if end > at:
                    yield from self._repeat(said, end, flags, done + 1)
        if done >= least:
            yield at

    @staticmethod
    def _first(ends: Iterator[int]) -> Iterator[int]:
        for end in ends:
            yield end
            return

    def _holds(self, said: Any, at: int, flags: int) -> bool:
        direction, items = said
        if direction < 0:
            at -= items.getwidth()[0]
        return at >= 0 and next(self._all_of(list(items), at, flags), None) is not None

    def _is_at(self, where: Any, at: int, flags: int) -> bool:
        mark = {
            op.AT_BOUNDARY: r"\b", op.AT_NON_BOUNDARY: r"\B", op.AT_BEGINNING: "^", op.AT_END: "$",
            op.AT_BEGINNING_STRING: r"\A", op.AT_END_STRING: r"\Z",
        }[where]  # fmt: skip
        return re.compile(mark, flags & re.MULTILINE).match(self.text, at) is not None

    def _is(self, kind: Any, said: Any, letter: str, flags: int) -> bool:
        """Whether one character is what is meant."""
        if kind is op.ANY:
            return letter != "\n" or bool(flags & re.DOTALL)
        alike = {letter.lower(), letter.upper()} if flags & re.IGNORECASE else {letter}
        if kind is op.LITERAL or kind is op.NOT_LITERAL:
            return (chr(said) in alike) is (kind is op.LITERAL)
        assert kind is op.IN, f"{kind}: teach this matcher"
        is_in = any(self._is_one_of(member, value, one) for member, value in said for one in alike)
        return is_in is not (said[0][0] is op.NEGATE)

    @staticmethod
    def _is_one_of(kind: Any, said: Any, letter: str) -> bool:
        if kind is op.LITERAL:
            return letter == chr(said)
        if kind is op.RANGE:
            return bool(said[0] <= ord(letter) <= said[1])
        return kind is op.CATEGORY and re.match(_CATEGORIES[said], letter) is not None
