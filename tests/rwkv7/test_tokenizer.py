import pytest

from jaxlab.rwkv7 import StreamDecoder, Tokenizer

EXTRA = [
    b"\n\n",
    b"Hello",
    b" world",
    b"He",
    b"Hel",
    b"12345"[:2],
    "é".encode(),
    b"ello wor",
    b"  ",
]


def vocabulary(extra=EXTRA):
    """All bytes, then longer tokens; literals of both kinds as in the released file."""
    lines = []
    for index, token in enumerate([bytes([b]) for b in range(256)] + list(extra), start=1):
        try:
            literal = repr(token.decode())
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{index} {literal} {len(token)}")
    return lines


@pytest.fixture
def write(tmp_path):
    def write(lines):
        path = tmp_path / "vocab.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def tokenizer(write):
    return Tokenizer.from_file(write(vocabulary()))


def test_greedy_longest_match(tokenizer):
    n = 257  # the first of EXTRA
    assert tokenizer.encode("a") == [98]
    assert tokenizer.encode("\n\n") == [n]
    assert tokenizer.encode("\n\n\n") == [n, 11]
    assert tokenizer.encode("Hello world") == [n + 1, n + 2]
    # Longest from the left, not fewest tokens: "He" + "llo" never wins over "Hell" = "Hel" + "l".
    assert tokenizer.encode("Hell") == [n + 4, 109]
    assert tokenizer.encode("He") == [n + 3]
    assert tokenizer.encode("H") == [73]
    assert tokenizer.encode("é") == [n + 6]
    assert tokenizer.encode(b"\xc3") == [0xC3 + 1]
    assert tokenizer.encode("") == []
    assert tokenizer.vocab_size == 1 + 256 + len(EXTRA)


def test_the_splitting_is_that_of_an_exhaustive_search(tokenizer):
    text = b"Hello world  Hello wor\n\n\nHe 12 12345 \xc3\xa9\xc3 Hel"
    want, rest = [], text
    while rest:
        best = max((t for t in tokenizer.tokens[1:] if rest.startswith(t)), key=len)
        want.append(tokenizer.tokens.index(best))
        rest = rest[len(best) :]
    assert tokenizer.encode(text) == want
    assert tokenizer.decode_bytes(want) == text


def test_round_trip_and_invalid_bytes(tokenizer):
    for text in ("Hello é 日本 \U0001f600\x00\n\n", "", "  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([0, 98, 0]) == "a"  # the end of a document has no text
    assert tokenizer.decode([0xFF + 1]) == "�"


def test_streaming_holds_incomplete_characters_back(tokenizer):
    text = "a日é\U0001f600!"
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed([index]) for index in Tokenizer.of_bytes().encode(text)]
    assert "".join(pieces) == text and stream.finish() == ""
    assert "�" not in "".join(pieces)
    assert pieces[1:4] == ["", "", "日"]
    assert stream.feed(tokenizer.encode("日")[:2]) == "" and stream.finish() == "�"


def test_bytes_need_no_vocabulary():
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode("aé") == [98, 0xC3 + 1, 0xA9 + 1]


def drop(lines, number):
    return [line for line in lines if not line.startswith(f"{number} ")]


BAD = {
    "missing": (drop(vocabulary(), 77), "id 77 is missing"),
    "twice": ([*vocabulary(), "3 'xyz' 3"], "line 266: id 3 occurs twice"),
    "repeated": ([*vocabulary(), "266 'He' 2"], "id 266 repeats id 260: b'He'"),
    "length": ([*vocabulary(), "266 'é' 1"], "line 266: expected `id literal length`"),
    "no literal": ([*vocabulary(), "266 open('x') 1"], "line 266: expected `id literal length`"),
    "number": ([*vocabulary(), "266 17 2"], "line 266: expected `id literal length`"),
    "short": ([*vocabulary(), "266"], "line 266: expected `id literal length`"),
    "unhashable": ([*vocabulary(), "266 {[]: 1} 3"], "line 266: expected `id literal length`"),
    "no line": ([], "expected lines of `id literal length`, got none"),
    "empty": ([*vocabulary(), "266 '' 0"], "id 266 is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_vocabularies_get_one_sentence(write, case):
    lines, message = BAD[case]
    with pytest.raises(ValueError) as error:
        Tokenizer.from_file(write(lines))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "vocab.txt" in str(error.value)


def test_a_vocabulary_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"1 'a' 1\n\xff")
    with pytest.raises(ValueError, match=r"vocab\.txt: expected a vocabulary in UTF-8"):
        Tokenizer.from_file(path)


def test_nothing_in_a_vocabulary_is_executed(write, tmp_path):
    target = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    with pytest.raises(ValueError, match="expected `id literal length`"):
        Tokenizer.from_file(write([*vocabulary(), f"266 {code} 5"]))
    assert not target.exists()


def test_ids_and_bytes_without_a_token_are_named(tokenizer, write):
    with pytest.raises(ValueError, match=r"ids: expected \[0, 266\), got 266"):
        tokenizer.decode([266])
    with pytest.raises(ValueError, match=r"ids: .*got -1"):
        StreamDecoder(tokenizer).feed([-1])
    few = Tokenizer.from_file(write(["1 'a' 1", "2 'bc' 2"]))
    assert few.encode("abca") == [1, 2, 1]
    with pytest.raises(ValueError, match="no token begins with the byte 0x62"):
        few.encode("ab")
    with pytest.raises(ValueError, match="empty string at id 0"):
        Tokenizer((b"a",))
