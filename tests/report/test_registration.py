import dataclasses
import json

import pytest

from jaxlab.report import RegistrationError, register, registered_digests


def enter(program, directory, config, claims=None, resume=True):
    claims = program.claims(config) if claims is None else claims
    return register(directory, program, config, claims, resume=resume)


def test_claims_are_on_disk_with_their_digests(program, tmp_path):
    config = program.presets["small"]
    assert enter(program, tmp_path / "r", config) is False
    assert registered_digests(tmp_path / "r") == {
        claim.name: claim.digest() for claim in program.claims(config)
    }
    assert enter(program, tmp_path / "r", config) is True


def test_another_claim_or_configuration_is_refused_when_resuming(program, tmp_path):
    config = program.presets["small"]
    enter(program, tmp_path / "r", config)
    claims = program.claims(config)
    easier = (dataclasses.replace(claims[0], threshold=0.1), *claims[1:])
    with pytest.raises(RegistrationError, match=r"other claims \(gain changed"):
        enter(program, tmp_path / "r", config, easier)
    with pytest.raises(RegistrationError, match="other claims"):
        enter(program, tmp_path / "r", config, claims[1:])
    with pytest.raises(RegistrationError, match=r"seeds 16 -> 17"):
        enter(program, tmp_path / "r", dataclasses.replace(config, seeds=17))
    assert registered_digests(tmp_path / "r")["gain"] == claims[0].digest()


def test_replacing_counts_and_removes_the_old_verdict_and_checkpoints(program, tmp_path):
    config = program.presets["small"]
    enter(program, tmp_path / "r", config)
    (tmp_path / "r" / "verdict.json").write_text("{}")
    for kept in ("compiled", "study"):
        (tmp_path / "r" / "checkpoints" / kept).mkdir(parents=True)
    (tmp_path / "r" / "checkpoints" / "run.json").write_text("{}")
    changed = dataclasses.replace(config, seeds=17)
    assert enter(program, tmp_path / "r", changed, resume=False) is False
    assert not (tmp_path / "r" / "verdict.json").exists()
    assert [path.name for path in (tmp_path / "r" / "checkpoints").iterdir()] == ["compiled"]
    content = json.loads((tmp_path / "r" / "claims.json").read_text())
    assert content["earlier_registrations"] == 1


@pytest.mark.parametrize("resume", [True, False])
def test_foreign_folders_are_refused(program, tmp_path, resume):
    config = program.presets["small"]
    enter(program, tmp_path / "r", config)
    other = dataclasses.replace(program, name="other")
    with pytest.raises(RegistrationError, match="'fake', not 'other'"):
        enter(other, tmp_path / "r", config, resume=resume)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(RegistrationError, match="not empty"):
        enter(program, tmp_path / "home", config, resume=resume)


def test_claims_need_distinct_names(program, tmp_path):
    config = program.presets["small"]
    claim = program.claims(config)[0]
    with pytest.raises(RegistrationError, match="distinct"):
        enter(program, tmp_path / "r", config, (claim, claim))
