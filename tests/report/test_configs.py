import json
from dataclasses import dataclass, replace

from jaxlab.report import configs


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 1e-3
    widths: tuple[int, ...] = (8, 64)
    fast: bool = True


@dataclass(frozen=True)
class Outer:
    preset: str = "small"
    seeds: int = 4
    inner: Inner = Inner()
    limit: float = float("inf")


def test_flatten_names_leaves_by_path():
    assert configs.flatten(Outer()) == {
        "preset": "small",
        "seeds": 4,
        "inner.learning_rate": 1e-3,
        "inner.widths": (8, 64),
        "inner.fast": True,
        "limit": float("inf"),
    }
    plain = configs.plain(Outer())
    assert configs.flatten_tree(plain) == configs.flatten(Outer()) | {
        "inner.widths": [8, 64],
        "limit": "inf",
    }


def test_tuples_of_dataclasses_are_named_by_index():
    @dataclass(frozen=True)
    class Many:
        studies: tuple[Inner, ...] = (Inner(), Inner(widths=(1,)))

    flat = configs.flatten(Many())
    assert flat["studies.1.widths"] == (1,) and flat["studies.0.fast"] is True
    assert configs.flatten_tree(configs.plain(Many())).keys() == flat.keys()
    changed = configs.changes(Many((Inner(), Inner(2e-3, (1,)))), Many())
    assert configs.flags(changed) == ["--studies.1.learning-rate", "0.002"]


def test_a_study_has_the_seeds_of_the_whole_or_its_own():
    assert configs.seeded(Outer(), Outer(), 9) == Outer(seeds=9)
    assert configs.seeded(Outer(seeds=2), Outer(), 9) == Outer(seeds=2)


def test_plain_is_strict_json():
    json.dumps(configs.plain(Outer()), allow_nan=False)


def test_digest_depends_on_values_only():
    assert configs.digest(Outer()) == configs.digest(Outer())
    assert configs.digest(Outer()) != configs.digest(Outer(seeds=5))


def test_changes_are_phrased_and_turned_into_flags():
    inner = Inner(2e-3, (16,), fast=False)
    changed = configs.changes(replace(Outer(), seeds=5, inner=inner), Outer())
    assert configs.describe(changed) == (
        "seeds 4 -> 5",
        "inner.learning_rate 0.001 -> 0.002",
        "inner.widths (8, 64) -> (16,)",
        "inner.fast True -> False",
    )
    assert configs.flags(changed) == [
        *("--seeds", "5"),
        *("--inner.learning-rate", "0.002"),
        *("--inner.widths", "16"),
        "--inner.no-fast",
    ]
    assert configs.changes(Outer(), Outer()) == {}
