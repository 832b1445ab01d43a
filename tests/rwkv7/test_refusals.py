"""Files that are not whole and harmless checkpoints: one sentence each, nothing executed."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7.checkpoints.pth import read_pth, write_pth
from jaxlab.rwkv7.checkpoints.safetensors import read_safetensors, write_safetensors
from jaxlab.rwkv7.checkpoints.tensors import Tensor


def plain(array):
    return Tensor(array.shape, array.dtype, lambda: array)


@pytest.fixture
def tensors(params, config):
    return rwkv7.to_tensors(params, config)


def refused(load, path, *words):
    """One sentence that names the file and says what is wrong."""
    with pytest.raises(rwkv7.CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 400, message
    for word in words:
        assert word in message


def archive(path, pickled, members=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, content in dict(members).items():
            file.writestr(f"archive/{name}", content)
    return path


class Touch:
    """Unpickling this with an ordinary unpickler creates a file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ%s\x89ccollections\nOrderedDict\n)RtR"
)
NAME = b"X\x04\x00\x00\x00name"


def pickled_tensor(view=b"K\x00K\x04\x85K\x01\x85", head=b"\x80\x02}", tail=b"s."):
    return head + NAME + TENSOR % view + tail


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["alone", "value", "key", "attribute"])
def test_code_in_a_pth_is_not_executed(tmp_path, protocol, place):
    target = tmp_path / "executed"
    attack = Touch(os.system, f"touch {target}")
    payload = {"alone": attack, "value": {"emb.weight": attack}, "key": OrderedDict([(attack, 1)])}
    if place == "attribute":
        payload = OrderedDict()
        payload._metadata = attack
    else:
        payload = payload[place]
    pickled = pickle.dumps(payload, protocol)
    path = archive(tmp_path / "model.pth", pickled)
    refused(rwkv7.load, path, "system", "nothing was executed")
    assert not target.exists()
    pickle.loads(pickled)  # the attack is real
    assert target.exists()


@pytest.mark.parametrize(
    "attack",
    [
        Touch(eval, "1"),
        Touch(Path, "x"),
        Touch(getattr, 1, "real"),
        Touch(np.zeros, 3),
        Touch(OrderedDict.fromkeys, "ab"),
        Touch(pickle.loads, b"N."),
    ],
    ids=lambda attack: attack.call[0].__name__,
)
def test_no_other_function_is_available(tmp_path, attack):
    pickled = pickle.dumps({"emb.weight": attack}, 4)
    refused(read_pth, archive(tmp_path / "model.pth", pickled), "refused")


PAIRS = b")" + b"q\x00h\x00\x86" * 28  # a pair of a pair of ...: its hash takes 2^28 steps


@pytest.mark.parametrize(
    ("name", "pickled", "word"),
    [
        ("nested key", b"\x80\x02}" + PAIRS + b"Ns.", "not named by a text"),
        ("nested keys", b"\x80\x02}(" + NAME + b"N" + PAIRS + b"Nu.", "not named by a text"),
        (
            "nested argument",
            b"\x80\x02ccollections\nOrderedDict\n" + PAIRS + b"N\x86\x85\x85R.",
            "malformed",
        ),
        (
            "dotted name",
            b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
            "fromkeys",
        ),
        ("storage called", b"\x80\x02ctorch\nFloatStorage\n)R.", "malformed"),
        ("new object", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        ("extension", b"\x80\x02\x82\x01.", "EXT1"),
        ("old instance", b"(icollections\nOrderedDict\n.", "INST"),
        ("huge memo", b"\x80\x02}r\xff\xff\xff\x7f.", "malformed"),
        ("empty stack", b"\x80\x02.", "malformed"),
        ("cut short", pickled_tensor()[:40], "malformed"),
        ("empty", b"", "malformed"),
        ("a number", b"\x80\x02K\x01.", "no dictionary of tensors"),
        ("empty dictionary", b"\x80\x02}.", "no dictionary of tensors"),
        ("number as value", b"\x80\x02}" + NAME + b"K\x01s.", "not a named tensor"),
        ("unhashable", b"\x80\x02}}K\x01s.", "malformed"),
        (
            "integers",
            pickled_tensor().replace(b"FloatStorage", b"LongStorage"),
            "torch.LongStorage",
        ),
        (
            "bad reference",
            pickled_tensor().replace(b"X\x07\x00\x00\x00storage", b"K\x01"),
            "storage",
        ),
        ("too long", pickled_tensor(b"K\x00K\x05\x85K\x01\x85"), "beyond its storage"),
        ("offset", pickled_tensor(b"K\x01K\x04\x85K\x01\x85"), "beyond its storage"),
        ("stride", pickled_tensor(b"K\x00K\x03\x85K\x02\x85"), "beyond its storage"),
        ("repeated", pickled_tensor(b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85"), "beyond its storage"),
        ("negative", pickled_tensor(b"K\x00K\x04\x85J\xff\xff\xff\xff\x85"), "malformed"),
        ("axes", pickled_tensor(b"K\x00K\x04\x85)"), "malformed"),
        ("no shape", pickled_tensor(b"K\x00NK\x01\x85"), "malformed"),
        ("boolean", pickled_tensor(b"\x89K\x04\x85K\x01\x85"), "malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_malformed_pickles(tmp_path, name, pickled, word):
    path = archive(tmp_path / "model.pth", pickled, {"data/0": bytes(16)})
    refused(read_pth, path, word)


def test_the_hand_written_pickle_is_sound_otherwise(tmp_path):
    numbers = np.arange(4, dtype=np.float32)
    path = archive(tmp_path / "model.pth", pickled_tensor(), {"data/0": numbers.tobytes()})
    np.testing.assert_array_equal(read_pth(path)["name"].read(), numbers)
    every_other = pickled_tensor(b"K\x01K\x02\x85K\x02\x85")
    path = archive(tmp_path / "view.pth", every_other, {"data/0": numbers.tobytes()})
    np.testing.assert_array_equal(read_pth(path)["name"].read(), [1, 3])


def test_damaged_archives(tmp_path, tensors):
    whole = tmp_path / "whole.pth"
    write_pth(whole, tensors)
    content = whole.read_bytes()
    path = tmp_path / "model.pth"
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(rwkv7.load, path)
    path.write_bytes(content[: len(content) // 2])
    refused(rwkv7.load, path, "truncated or damaged")
    head = np.asarray(tensors["head.weight"].read()).tobytes()
    at = content.index(head) + 5
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(rwkv7.load, path, "damaged", "head.weight", "CRC")


def test_members_that_cannot_be_read(tmp_path, tensors):
    path = tmp_path / "model.pth"
    write_pth(path, tensors)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        at = content.index(b"archive/data/3", file.start_dir) - 46  # its entry in the directory
    for offset, bit in ((8, 0x20), (8, 0x01), (45, 0x80)):  # patched, encrypted, elsewhere
        damaged = bytearray(content)
        damaged[at + offset] ^= bit
        path.write_bytes(damaged)
        refused(rwkv7.load, path, "damaged")
    archive(path, os.urandom(300), compression=zipfile.ZIP_DEFLATED)
    damaged = bytearray(path.read_bytes())
    damaged[46] = 0xFF  # the first byte of the deflated pickle
    path.write_bytes(damaged)
    refused(rwkv7.load, path, "damaged")
    write_pth(path, tensors)
    lazy = read_pth(path)["head.weight"]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        lazy.read()


def test_a_safetensors_header_may_begin_like_a_zip(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors)
    content = path.read_bytes()
    length, wanted = struct.unpack("<Q", content[:8])[0], 0x4B50  # b"PK" as a length
    table = content[8 : 8 + length] + b" " * (wanted - length)
    path.write_bytes(struct.pack("<Q", wanted) + table + content[8 + length :])
    rwkv7.load(path)


def test_other_archives(tmp_path):
    path = tmp_path / "model.pth"
    zeros = bytes(16)
    archive(path, pickled_tensor(), {"data/0": zeros[:12]})
    refused(read_pth, path, "missing or incomplete", "'name'")
    archive(path, pickled_tensor())
    refused(read_pth, path, "missing or incomplete")
    archive(path, pickled_tensor(), {"data/0": zeros, "byteorder": b"big"})
    refused(read_pth, path, "big-endian")
    archive(path, pickled_tensor(), {"byteorder": bytes(17)}, zipfile.ZIP_DEFLATED)
    refused(read_pth, path, "byteorder is larger")
    archive(path, pickled_tensor(), {"data/0": zeros}, zipfile.ZIP_DEFLATED)
    refused(read_pth, path, "compressed")
    archive(path, pickled_tensor(), {"data/0": zeros, "more/data.pkl": b""})
    refused(read_pth, path, "not one written by torch.save")
    archive(path, bytes((64 << 20) + 1), compression=zipfile.ZIP_DEFLATED)
    refused(read_pth, path, "data.pkl is larger")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    path.write_bytes(buffer.getvalue())
    refused(rwkv7.load, path, "not one written by torch.save")
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    refused(rwkv7.load, path, "legacy pickle", "torch.save it again")
    path.write_bytes(b"<!DOCTYPE html>")
    refused(rwkv7.load, path, "not a .pth archive")
    with pytest.raises(FileNotFoundError):
        rwkv7.load(tmp_path / "absent.pth")


def header(table, data=b"", length=None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        (header({}, length=1 << 40), "truncated"),
        (header({}, length=100), "truncated"),
        (header(b"{"), "not valid JSON"),
        (header(b"\xff\xfe"), "not valid JSON"),
        (header(b'{"a": 1, "a": 2}'), "occurs twice"),
        (header(b"[" * 100_000), "not valid JSON"),
        (header([1]), "not a table"),
        (header({"a": 1}), "describes 'a' wrongly"),
        (header({"a": entry(0, 8) | {"shape": [-2]}}), "describes 'a' wrongly"),
        (header({"a": entry(0, 8) | {"shape": [2.0]}}), "describes 'a' wrongly"),
        (header({"a": entry(0, 8) | {"data_offsets": [0]}}), "describes 'a' wrongly"),
        (header({"a": entry(0, 8, dtype="I32")}, bytes(8)), "'a' is I32, expected one of float64"),
        (header({"a": entry(0, 4)}, bytes(4)), "has 4 bytes, expected 8 for F32[2]"),
        (header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap"),
        (header({"a": entry(4, 12)}, bytes(12)), "gaps"),
        (header({"a": entry(0, 8)}, bytes(7)), "truncated or overlong: expected"),
        (header({"a": entry(0, 8)}, bytes(9)), "truncated or overlong: expected"),
    ],
)
def test_malformed_safetensors(tmp_path, content, word):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(read_safetensors, path, word)


CHANGES = {
    "missing": ({"blocks.1.ln2.bias": None}, "1 tensors are missing, blocks.1.ln2.bias"),
    "no layer 0": ({"blocks.0.att.r_k": None}, "blocks.0.att.r_k is missing"),
    "unknown": ({"blocks.0.ffn.s_emb.weight": (3, 4)}, "not RWKV-7's, blocks.0.ffn.s_emb.weight"),
    "shape": ({"blocks.2.att.key.weight": (32, 31)}, "expected shape (32, 32), got (32, 31)"),
    "transposed": ({"blocks.1.ffn.value.weight": (56, 32)}, "expected shape (32, 56)"),
    "rank": ({"blocks.1.att.w1": (32, 9)}, "blocks.1.att.w1: expected shape (32, 4)"),
    "heads": ({"blocks.0.att.r_k": (3, 16)}, "blocks.0.att.r_k: expected 32 numbers, got 3 x 16"),
    "axes": ({"emb.weight": (40, 8, 4)}, "emb.weight: expected 2 axes"),
    "another model": ({"emb.weight": None}, "neither emb.weight nor model.embeddings.weight"),
    "far layer": ({"blocks.99999999.ln1.bias": (32,)}, "but a layer 99999999"),
    "no width": ({"emb.weight": (40, 0), "blocks.0.att.r_k": (0, 16)}, "no RWKV-7 model: n_embd"),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_tensors_that_are_not_this_model(tmp_path, tensors, case, suffix):
    changes, words = CHANGES[case]
    for name, shape in changes.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = plain(np.zeros(shape, np.float32))
    path = tmp_path / f"model.{suffix}"
    {"pth": write_pth, "safetensors": write_safetensors}[suffix](path, tensors)
    refused(rwkv7.load, path, words)


def test_hugging_face_folders(tmp_path, tensors):
    refused(rwkv7.load, tmp_path, "neither model.safetensors nor")
    index = tmp_path / "model.safetensors.index.json"
    for text, word in [
        ("[]", "not an index"),
        ("{", "not an index"),
        ('{"weight_map": {"a": 3}}', "not an index"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "outside the folder"),
        ('{"weight_map": {"a": "one.safetensors"}}', "shard one.safetensors is missing"),
    ]:
        index.write_text(text)
        refused(rwkv7.load, tmp_path if "missing" in word else index.parent, word)
    write_safetensors(tmp_path / "one.safetensors", {"b": plain(np.zeros(2, np.float32))})
    refused(rwkv7.load, tmp_path, "a is in the index and in no shard")
    (tmp_path / "bad").mkdir()
    stacked = {
        "model.embeddings.weight": plain(np.zeros((4, 2), np.float32)),
        "model.layers.0.attn.x_x": plain(np.zeros((5, 2), np.float32)),
    }
    write_safetensors(tmp_path / "bad" / "model.safetensors", stacked)
    refused(rwkv7.load, tmp_path / "bad", "expected 6 stacked vectors, got (5, 2)")
