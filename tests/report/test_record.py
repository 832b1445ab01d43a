import json

import pytest

from jaxlab.report import collect, load


def test_collect_orders_skips_and_reports(program, finish, project):
    finish(program.presets["small"], "b")
    finish(program.presets["paper"], "a")
    broken = project / "runs" / "broken"
    broken.mkdir()
    (broken / "verdict.json").write_text('{"format": 99}')
    roots = [project / "runs", project / "runs" / "a", project / "absent"]
    stored, problems = collect(roots)
    assert [record.preset for _, record in stored] == ["paper", "small"]
    assert len(problems) == 1 and "format must be 1" in problems[0]


def test_a_verdict_without_its_registration_is_invalid(program, finish):
    directory, record = finish(program.presets["small"])
    assert load(directory) == record
    (directory / "claims.json").unlink()
    assert load(directory).status == "invalid"


def test_claims_registered_again_make_the_old_verdict_invalid(program, finish):
    directory, _ = finish(program.presets["small"])
    path = directory / "claims.json"
    data = json.loads(path.read_text())
    data["claims"][0]["digest"] = "0" * 64
    path.write_text(json.dumps(data))
    assert load(directory).status == "invalid"


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", -5.0), ("digest", "0" * 64), ("colour", "red")]
)
def test_an_edited_claim_is_refused(program, finish, field, value):
    directory, _ = finish(program.presets["small"])
    path = directory / "verdict.json"
    data = json.loads(path.read_text())
    data["parts"][0]["claim"][field] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"verdict\.json: claim"):
        load(directory)


def test_a_missing_field_names_the_file(program, finish):
    directory, _ = finish(program.presets["small"])
    path = directory / "verdict.json"
    data = json.loads(path.read_text())
    del data["seeds"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"verdict\.json.*seeds"):
        load(directory)
