"""The World tokenizer: greedy longest match over a table of byte strings."""

from __future__ import annotations

import ast
import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

END_OF_DOCUMENT = 0


@dataclass(frozen=True)
class Tokenizer:
    """A table of byte strings; `tokens[i]` has id i, and id 0 is the end of a document.

    No merges and no pre-tokenisation: from the left, the longest token that matches is taken.
    """

    tokens: tuple[bytes, ...]
    _ids: dict[bytes, int] = field(init=False, repr=False, compare=False)
    _lengths: dict[bytes, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.tokens or self.tokens[END_OF_DOCUMENT] != b"":
            raise ValueError("tokens: expected an empty string at id 0, the end of a document")
        ids: dict[bytes, int] = {}
        lengths: dict[bytes, set[int]] = {}
        for index, token in enumerate(self.tokens[1:], start=1):
            if token == b"" or token in ids:
                what = "is empty" if token == b"" else f"repeats id {ids[token]}"
                raise ValueError(f"tokens: id {index} {what}: {token!r}")
            ids[token] = index
            lengths.setdefault(token[:2], set()).add(len(token))
        object.__setattr__(self, "_ids", ids)
        longest_first = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        object.__setattr__(self, "_lengths", longest_first)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a vocabulary: one `id literal length` per line.

        Args:
            path: for the released World models, `rwkv_vocab_v20230424.txt`.

        Returns:
            The tokenizer.

        Raises:
            ValueError: no UTF-8, no or a malformed line, a missing or repeated id, a repeated
                token.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected a vocabulary in UTF-8, got other bytes") from error
        table: dict[int, bytes] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                index, token = _parse(line)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected `id literal length`, got {line!r:.80}"
                ) from error
            if index in table:
                raise ValueError(f"{path}, line {number}: id {index} occurs twice")
            table[index] = token
        if not table:
            raise ValueError(f"{path}: expected lines of `id literal length`, got none")
        for index in range(1, len(table) + 1):
            if index not in table:
                raise ValueError(f"{path}: id {index} is missing")
        try:
            return cls((b"", *(table[index] for index in range(1, len(table) + 1))))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def of_bytes(cls) -> Tokenizer:
        """The tokenizer without a vocabulary: a byte's id is its value plus one."""
        return cls((b"", *(bytes([byte]) for byte in range(256))))

    @property
    def vocab_size(self) -> int:
        """Number of ids, that of the end of a document included."""
        return len(self.tokens)

    def encode(self, text: str | bytes) -> list[int]:
        """Splits text into tokens.

        Args:
            text: encoded as UTF-8 if not bytes.

        Returns:
            Ids.

        Raises:
            ValueError: a byte that no token begins with.
        """
        data = text.encode() if isinstance(text, str) else text
        ids, position = [], 0
        while position < len(data):
            index = None
            for length in self._lengths.get(data[position : position + 2], ()):
                index = self._ids.get(data[position : position + length])
                if index is not None:
                    break
            if index is None:
                index = self._ids.get(data[position : position + 1])
            if index is None:
                raise ValueError(f"text: no token begins with the byte {data[position]:#04x}")
            ids.append(index)
            position += len(self.tokens[index])
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Joins the bytes of tokens.

        Args:
            ids: token ids; the end of a document is empty.

        Returns:
            The bytes.

        Raises:
            ValueError: an id outside the table.
        """
        ids = [int(index) for index in ids]
        for index in ids:
            if not 0 <= index < len(self.tokens):
                raise ValueError(f"ids: expected [0, {len(self.tokens)}), got {index}")
        return b"".join(self.tokens[index] for index in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: token ids.

        Returns:
            The text.

        Raises:
            ValueError: an id outside the table.
        """
        return self.decode_bytes(ids).decode(errors="replace")


class StreamDecoder:
    """Text of tokens as they come; a character whose bytes are still incomplete is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text that has become certain.

        Args:
            ids: the next token ids.

        Returns:
            Complete characters, perhaps none.

        Raises:
            ValueError: an id outside the table.
        """
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What an incomplete character at the end amounts to: nothing or U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _parse(line: str) -> tuple[int, bytes]:
    """One line of a vocabulary; literals only, nothing is evaluated."""
    first, last = line.index(" "), line.rindex(" ")
    literal = ast.literal_eval(line[first:last].strip())
    token = literal.encode() if isinstance(literal, str) else literal
    if not isinstance(token, bytes) or len(token) != int(line[last:]):
        raise ValueError("not a string of the stated length")
    return int(line[:first]), token
