import dataclasses
import json

import numpy as np
import pytest

from jaxlab.report import load, read_dataset, save
from jaxlab.report.record import from_json

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_run_leaves_verdict_datasets_and_plots(stored):
    directory, record = stored[0]
    assert record.status == "reproduced"
    assert load(directory) == from_json(json.loads((directory / "verdict.json").read_text()))
    dataset = read_dataset(directory / "results" / "scores.nc")
    assert dataset.sizes == {"arm": 2, "seed": 32}
    names = [plot["file"] for plot in record.files["plots"]]
    assert names == ["curves-score-over-time.png", "intervals.png", "paired.png"]
    for name in names:
        assert (directory / name).read_bytes().startswith(PNG)
    written = {path.name for path in directory.iterdir()}
    assert written == {*names, "claims.json", "verdict.json", "results"}


def test_record_says_where_it_comes_from_and_nothing_private(program, finish, project):
    directory, record = finish(program.presets["small"])
    for package in ("python", "jaxlab", "jax", "jaxlib", "numpy"):
        assert record.versions[package]
    assert record.device["platform"] == "cpu" and record.device["count"] >= 1
    assert record.command == "jaxlab run fake --preset small"
    text = (directory / "verdict.json").read_text()
    assert str(project) not in text


def test_wall_time_includes_the_finished_visit_that_was_reused(program, finish, project):
    directory, record = finish(program.presets["small"])
    outcome = program.run(program.presets["small"], directory=directory, resume=True, progress=True)
    for resumed, expected in ((True, 5.0), (False, 3.0)):
        options = {"git": None, "wall_seconds": 3.0, "resumed": resumed}
        record = save(directory, program, program.presets["small"], outcome, **options)
        assert (record.wall_seconds, record.resumed) == (expected, resumed)


def test_overrides_are_marked_and_can_be_typed_again(program, finish):
    config = program.presets["small"]
    shift = dataclasses.replace(config.shift, size=2.5, use_noise=False)
    _, record = finish(dataclasses.replace(config, shift=shift))
    assert record.modified == ("shift.size 1.0 -> 2.5", "shift.use_noise True -> False")
    assert record.command == (
        "jaxlab run fake --preset small --shift.size 2.5 --shift.no-use-noise"
    )
    assert "modified" in record.conclusion


def test_diverged_seeds_are_stored_as_null_and_counted(program, finish):
    _, record = finish(program.presets["small"])
    assert record.paired["gain"]["treatment"][-1] is None
    assert np.isfinite(record.paired["gain"]["control"]).all()
    gain = next(part for part in record.parts if part.claim.name == "gain")
    assert gain.verdict.failures == (1, 0)


def test_smoke_never_carries_a_verdict(program, finish):
    def claim_success(outcome):
        parts = [(c, dataclasses.replace(v, status="reproduced")) for c, v in outcome.parts]
        return outcome._replace(parts=tuple(parts))

    _, record = finish(program.presets["smoke"], tamper=claim_success)
    assert record.status == "smoke"
    assert {part.verdict.status for part in record.parts} == {"smoke"}


def test_a_claim_changed_after_registration_is_invalid(program, finish):
    def easier(outcome):
        (claim, verdict), *rest = outcome.parts
        return outcome._replace(
            parts=((dataclasses.replace(claim, threshold=-9.0), verdict), *rest)
        )

    directory, record = finish(program.presets["small"], tamper=easier)
    assert record.status == "invalid"
    assert record.parts[0].verdict.status == "invalid"
    assert load(directory).status == "invalid"


def test_an_unregistered_extra_claim_is_invalid(program, finish):
    def extra(outcome):
        claim, verdict = outcome.parts[0]
        late = (dataclasses.replace(claim, name="late", required=False), verdict)
        return outcome._replace(parts=(*outcome.parts, late))

    _, record = finish(program.presets["small"], tamper=extra)
    assert record.status == "invalid"


def test_a_forgotten_claim_is_an_error(program, finish):
    with pytest.raises(ValueError, match=r"no verdict.*'gain'"):
        finish(
            program.presets["small"],
            tamper=lambda outcome: outcome._replace(parts=outcome.parts[1:]),
        )


def test_fewer_seeds_than_registered_give_no_verdict(program, finish):
    _, record = finish(dataclasses.replace(program.presets["small"], seeds=6))
    assert record.status == "inconclusive"
    assert record.modified == ("seeds 16 -> 6",)
