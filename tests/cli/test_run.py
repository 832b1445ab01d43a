import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from jaxlab.cli import main
from jaxlab.report import read_dataset


def verdict(folder):
    return json.loads((folder / "verdict.json").read_text())


def test_run_goes_from_claims_to_verdict(project, capsys):
    assert main(["run", "fake"]) == 0
    out = capsys.readouterr().out
    announcement, _, result = out.partition("writes to runs/fake-small")
    for text in ("Warm <starts>", "preset small, 16 seeds", "claim gain (≥ 0.5, 16 seeds)"):
        assert text in announcement
    for text in ("| gain ", "Inconclusive: gain", "exit status is 0"):
        assert text in result
    folder = project / "runs" / "fake-small"
    assert verdict(folder)["status"] == "inconclusive"
    assert read_dataset(folder / "results" / "scores.nc").sizes["seed"] == 16
    assert (folder / "intervals.png").exists()


def test_any_field_can_be_overridden_and_is_marked(project, capsys):
    words = "run fake --preset paper --seeds 7 --shift.size -1.5 --shift.scales 1 2 3 "
    words += "--shift.no-use-noise --no-progress --out elsewhere"
    assert main(words.split()) == 0
    marks = (
        "modified: seeds 32 -> 7, shift.size 2.0 -> -1.5, shift.scales (8, 64) -> (1, 2, 3), "
        "shift.use_noise True -> False"
    )
    assert capsys.readouterr().out.count(marks) == 3  # announcement, table, conclusion
    stored = verdict(project / "elsewhere")
    assert stored["config"]["shift"] == {"size": -1.5, "scales": [1, 2, 3], "use_noise": False}
    assert stored["seeds"] == 7
    again = shlex.split(stored["command"])[1:]
    assert main([*again, "--out", "again"]) == 0
    repeated = verdict(project / "again")
    assert repeated["config_digest"] == stored["config_digest"]
    assert repeated["parts"] == stored["parts"]


def test_help_lists_every_field(project, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "fake", "--preset", "paper", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    flags = ("--seeds", "--shift.size", "--shift.scales", "--preset", "--out", "--no-resume")
    for text in (*flags, "default: 32", "jaxlab run fake"):
        assert text in out


def test_entries_of_a_tuple_of_dataclasses_are_options(project, capsys):
    source = project / "experiments" / "fake.py"
    field = "    shift: Shift = Shift()\n"
    more = "    more: tuple[Shift, ...] = (Shift(), Shift())\n"
    source.write_text(source.read_text().replace(field, field + more))
    words = "run fake --more.1.size 3 --more.0.no-use-noise --more.0.scales 1 2"
    assert main(words.split()) == 0
    stored = verdict(project / "runs" / "fake-small")
    assert stored["modified"] == [
        "more.0.scales (8, 64) -> (1, 2)",
        "more.0.use_noise True -> False",
        "more.1.size 1.0 -> 3.0",
    ]
    assert main([*shlex.split(stored["command"])[1:], "--out", "again"]) == 0
    assert verdict(project / "again")["config_digest"] == stored["config_digest"]
    assert main(["run", "fake", "--more.0.sizes", "3"]) == 2
    assert "did you mean '--more.0.size'?" in capsys.readouterr().err
    assert main(["run", "fake"]) == 2
    assert "more.1.size 3.0 -> 1.0" in capsys.readouterr().err


def test_a_run_without_seeds_is_refused_before_it_is_registered(project, capsys):
    source = project / "experiments" / "fake.py"
    source.write_text(source.read_text().replace("if self.seeds < 1:", "if False:"))
    for seeds in ("0", "-3"):
        assert main(["run", "fake", "--seeds", seeds]) == 2
        assert f"seeds: expected at least 1, got {seeds}" in capsys.readouterr().err
    assert not (project / "runs").exists()


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(project, capsys):
    (project / "file").write_text("")
    for out in ("file", "/proc/foo"):
        assert main(["run", "fake", "--out", out]) == 2
        assert f"{out} cannot hold a run: " in capsys.readouterr().err


def test_checkpoints_that_cannot_be_used_are_named_with_the_remedy(project, capsys):
    source = project / "experiments" / "fake.py"
    source.write_text(
        source.read_text().replace(
            "raise KeyboardInterrupt",
            "import jaxlab.ensemble; raise jaxlab.ensemble.CheckpointError('another run')",
        )
    )
    assert main(["run", "fake", "--stop", "ctrl-c"]) == 2
    assert "--no-resume to start over: another run" in capsys.readouterr().err


def test_only_checkpoints_carry_work_of_an_earlier_visit_over(project):
    folder = project / "runs" / "fake-smoke"
    words = ["run", "fake", "--preset", "smoke"]
    main(words)
    stored = verdict(folder) | {"wall_seconds": 5000.0, "git": {"commit": "old", "dirty": False}}
    (folder / "checkpoints" / "compiled").mkdir(parents=True, exist_ok=True)
    for kept in ("compiled/program", "study"):
        (folder / "checkpoints" / kept).mkdir()
        (folder / "verdict.json").write_text(json.dumps(stored))
        main(words)
        again, reused = verdict(folder), kept == "study"
        assert again["resumed"] is reused
        assert (again["wall_seconds"] >= 5000) is reused
        assert (again["git"] == stored["git"]) is reused


def test_finished_runs_resume_and_foreign_ones_are_refused(project, capsys):
    assert main(["run", "fake", "--preset", "smoke"]) == 0
    assert main(["run", "fake", "--preset", "smoke"]) == 0
    assert "resumes runs/fake-smoke" in capsys.readouterr().out
    folder = project / "runs" / "fake-smoke"
    assert verdict(folder)["status"] == "smoke"

    assert main(["run", "fake", "--preset", "smoke", "--shift.size", "3"]) == 2
    assert "shift.size 1.0 -> 3.0" in capsys.readouterr().err
    shutil.copy(project / "experiments" / "fake.py", project / "experiments" / "other.py")
    assert main(["run", "other", "--preset", "smoke", "--out", str(folder)]) == 2
    assert "experiment 'fake', not 'other'" in capsys.readouterr().err

    source = project / "experiments" / "fake.py"
    source.write_text(source.read_text().replace('"plain", 0.5,', '"plain", 0.1,'))
    assert main(["run", "fake", "--preset", "smoke"]) == 2
    assert "other claims (gain changed since)" in capsys.readouterr().err
    assert main(["run", "fake", "--preset", "smoke", "--no-resume"]) == 0
    assert verdict(folder)["earlier_registrations"] == 1


@pytest.mark.parametrize(("how", "status"), [("ctrl-c", 130), ("sigterm", 143)])
def test_interruptions_say_how_to_go_on(project, capsys, how, status):
    with pytest.raises(SystemExit) as stop:
        main(["run", "fake", "--stop", how, "--out", "a b"])
    assert stop.value.code == status
    err = capsys.readouterr().err
    assert f"jaxlab run fake --preset small --stop {how} --out 'a b'" in err
    assert (project / "a b" / "claims.json").exists()
    assert not (project / "a b" / "verdict.json").exists()


def test_the_engines_exit_status_is_kept(project, capsys):
    source = project / "experiments" / "fake.py"
    source.write_text(source.read_text().replace("raise KeyboardInterrupt", "raise SystemExit(75)"))
    with pytest.raises(SystemExit) as stop:
        main(["run", "fake", "--stop", "ctrl-c"])
    assert stop.value.code == 75
    assert "Go on with" in capsys.readouterr().err


def test_sigterm_is_ours_only_during_the_run(project):
    import signal

    before = signal.getsignal(signal.SIGTERM)
    main(["run", "fake", "--preset", "smoke"])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("flags", "prefix", "expected"),
    [
        ("", "", "min(cpu_count(), 8)"),
        ("--xla_force_host_platform_device_count=3", "", "3"),
        ("", "jax.config.update('jax_num_cpu_devices', 1); ", "1"),
    ],
)
def test_every_core_is_a_device_unless_devices_were_chosen(flags, prefix, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    code = (
        "import jax; from jaxlab.cli.running import _use_every_core; "
        "from jaxlab.report.provenance import cpu_count; "
        f"{prefix}_use_every_core(); assert jax.device_count() == {expected}, jax.device_count()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_an_experiment_starts_no_device():
    code = (
        "import jax; from jaxlab.report import discover, load_program\n"
        "for path in discover().values():\n"
        "    program = load_program(path)\n"
        "    [program.claims(config) for config in program.presets.values()]\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"  # refused once there are devices
        "assert jax.device_count() == 3"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
