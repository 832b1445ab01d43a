import jax
import jax.numpy as jnp
import pytest

from jaxlab import rwkv7
from jaxlab.cli import main
from jaxlab.cli.generating import _held_back


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model of bytes whose table is padded to 272 ids."""
    config = rwkv7.Config(272, 1, 32, head_size=16, dim_ffn=32, ranks=(4, 4, 4, 4))
    params = rwkv7.init(jax.random.key(0), config)
    # The padding would win every time if it could be chosen.
    params["emb"] = 1e4 * params["emb"]
    params["ln_out"]["bias"] = jnp.ones(32)
    params["head"] = params["head"].at[257:].set(10.0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    rwkv7.save(path, params, config)
    return path


@pytest.mark.slow
def test_text_is_that_of_generate(weights, capsys):
    words = ["generate", "--weights", str(weights), "--vocab", "bytes", "--prompt", "Hé"]
    words += ["--tokens", "40", "--temperature", "0.7", "--top-k", "90", "--seed", "3"]
    assert main(words) == 0
    streams = capsys.readouterr()
    params, config = rwkv7.load(weights, dtype="float32")
    config = rwkv7.Config(**{**vars(config), "vocab_size": 257})
    params |= {"emb": params["emb"][:257], "head": params["head"][:257]}
    tokenizer = rwkv7.Tokenizer.of_bytes()
    want = rwkv7.generate(
        params,
        config,
        jnp.asarray([tokenizer.encode("Hé")]),
        40,
        jax.random.key(3),
        rwkv7.Sampler(0.7, 90),
        stop_tokens=(0,),
    )
    tokens = want.tokens[0][want.mask[0]].tolist()
    assert streams.out == tokenizer.decode(tokens) + "\n"
    assert streams.err.startswith(f"3 + {len(tokens)} tokens in ")

    stop = streams.out[5:7]
    assert main([*words, "--stop", "never there", stop]) == 0
    assert capsys.readouterr().out == streams.out[: streams.out.index(stop)] + "\n"


def test_empty_prompts_start_a_document(weights, capsys):
    words = ["generate", "--weights", str(weights), "--vocab", "bytes", "--tokens", "3"]
    assert main(words) == 0
    assert capsys.readouterr().err.startswith("1 + ")


def test_what_may_become_a_stop_text_is_held_back():
    assert _held_back("a\n", ("\n\n",)) == 1
    assert _held_back("abcab", ("abd", "bca")) == 2
    assert _held_back("abc", ("x", "bcd", "abcd")) == 3
    assert _held_back("abc", ()) == 0
    assert _held_back("abc", ("c",)) == 0  # complete ones have been looked for already


FILES = ["--weights", "x", "--vocab", "bytes"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name the weights: jaxlab generate --weights"),
        (["--weights", "x"], "name the vocabulary: --vocab FILE, or --vocab bytes"),
        (FILES, "x: No such file or directory"),
        (["--weights", "x", "--vocab", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--weights", "bad.pth", "--vocab", "bytes"], "bad.pth: not a .pth archive"),
        (["--weights", "bad.pth", "--vocab", "bad.txt"], "bad.txt, line 1: expected `id literal"),
        ([*FILES, "--temperature", "-1"], "temperature: expected at least 0, got -1"),
        ([*FILES, "--temperature", "nan"], "temperature: expected at least 0, got nan"),
        ([*FILES, "--top-p", "1.5"], "top-p: expected between 0 and 1, got 1.5"),
        ([*FILES, "--top-k", "-2"], "top-k: expected at least 0, got -2"),
        ([*FILES, "--tokens", "0"], "tokens: expected at least 1, got 0"),
        ([*FILES, "--stop", ""], "stop: expected texts that are not empty"),
        (["--topp", "1"], "unknown option '--topp'; did you mean '--top-p'?"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_text("hello")
    (tmp_path / "bad.txt").write_text("hello\n")
    assert main(["generate", *words]) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1
    assert streams.err.startswith(f"jaxlab: {sentence}")


def test_vocabularies_that_do_not_fit(weights, tmp_path, capsys):
    vocabulary = tmp_path / "vocab.txt"
    lines = [f"{index} {bytes([index - 1])!r} 1" for index in range(1, 257)]
    lines += [f"{index} 'long{index}' 7" for index in range(257, 300)]
    vocabulary.write_text("\n".join(lines))
    words = ["generate", "--weights", str(weights), "--vocab", str(vocabulary)]
    assert main(words) == 2
    assert "the vocabulary has 300 tokens, but" in capsys.readouterr().err
    vocabulary.write_text("1 'a' 1\n")
    assert main([*words, "--prompt", "ab"]) == 2
    assert "prompt: text: no token begins with the byte 0x62" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tuned_state_changes_the_text(weights, tmp_path, capsys):
    """The state's own text, that of `generate` from it; and files that hold none."""
    params, config = rwkv7.load(weights, dtype="float32")
    # A fresh model's blocks say nothing: let the state be heard.
    shape = params["blocks"]["att"]["output"].shape
    params["blocks"]["att"]["output"] = 30 * jax.random.normal(jax.random.key(2), shape)
    loud = tmp_path / "loud.safetensors"
    rwkv7.save(loud, params, config)
    start = rwkv7.initial_state(config, 1)
    learned = jax.tree.map(lambda leaf: leaf[:, 0], start)
    drawn = jax.random.normal(jax.random.key(1), learned.wkv.shape)
    path = tmp_path / "tuned.safetensors"
    rwkv7.save_learned_state(path, learned._replace(wkv=drawn), config)
    words = ["generate", "--weights", str(loud), "--vocab", "bytes", "--prompt", "ab"]
    words += ["--tokens", "20", "--seed", "5"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--state", str(path)]) == 0
    tuned = capsys.readouterr().out
    assert tuned != plain
    config = rwkv7.Config(**{**vars(config), "vocab_size": 257})
    params |= {"emb": params["emb"][:257], "head": params["head"][:257]}
    tokenizer = rwkv7.Tokenizer.of_bytes()
    want = rwkv7.generate(
        params,
        config,
        jnp.asarray([tokenizer.encode("ab")]),
        20,
        jax.random.key(5),
        stop_tokens=(0,),
        state=rwkv7.initial_state(config, 1, learned._replace(wkv=drawn)),
    )
    assert tuned == tokenizer.decode(want.tokens[0][want.mask[0]].tolist()) + "\n"

    assert main([*words, "--state", str(loud)]) == 2
    assert "blocks.0.att.time_state: expected (2, 16, 16), got none" in capsys.readouterr().err
    assert main([*words, "--state", "nowhere.pth"]) == 2
    assert "nowhere.pth: No such file" in capsys.readouterr().err
