import numpy as np
import pytest

from jaxlab.cli import main
from jaxlab.datasets import load

TINY = ["--rows", "20", "--episode-length", "5", "--training.hidden", "8"]
TINY += ["--training.initial-steps", "5", "--training.block", "5", "--training.blocks", "2"]
TINY += ["--training.batch-size", "4", "--training.eval-episodes", "2"]


def test_the_same_words_give_the_same_bytes(tmp_path, capsys):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for out in (one, two):
        assert main(["dataset", "pendulum", "random", str(out), "--seed", "7", *TINY]) == 0
    assert one.read_bytes() == two.read_bytes()
    said = capsys.readouterr().out
    assert f"{one}: pendulum random, 20 transitions in " in said and "the checksum holds" in said
    data = load(one)
    assert len(data) == 20 and data.about["seed"] == 7
    assert data.about["options"] == {"episode_length": 5}
    assert np.all(np.bincount(data.episode) <= 5)

    assert main(["dataset", "--check", str(one)]) == 0
    assert capsys.readouterr().out.startswith(f"{one}: pendulum random, 20 transitions")
    one.write_bytes(one.read_bytes()[:-1] + b"\1")
    assert main(["dataset", "--check", str(one)]) == 2
    assert "altered: its SHA-256 is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name three words: jaxlab dataset ENV LEVEL OUT"),
        (["pendulum", "random"], "name three words: jaxlab dataset ENV LEVEL OUT, got 'pendulum"),
        (["pendullum", "random", "x"], "unknown environment 'pendullum'; did you mean 'pendulum'?"),
        (["pendulum", "expret", "x"], "unknown level 'expret'; did you mean 'expert'?"),
        (["pendulum", "random", "x", "--rows", "0"], "rows: expected at least 1, got 0"),
        (["pendulum", "random", "x", "--sed", "0"], "unknown option '--sed'; did you mean"),
        (["--check", "nowhere"], "nowhere: cannot be read: No such file"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert main(["dataset", *words]) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1
    assert streams.err.startswith(f"jaxlab: {sentence}")
    assert not list(tmp_path.iterdir())
