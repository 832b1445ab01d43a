import shutil

from jaxlab.cli import main
from jaxlab.report.scoreboard import BEGIN, END


def test_report_collects_runs_and_results_and_updates_the_scoreboard(project, capsys):
    results = project / "experiments" / "results"
    main(["run", "fake", "--out", "experiments/results/fake-small"])
    main(["run", "fake", "--preset", "smoke"])
    shutil.copytree(project / "runs" / "fake-smoke", results / "fake-smoke")
    readme = project / "experiments" / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    capsys.readouterr()
    assert main(["report", "--out", "site/page.html"]) == 0
    out = capsys.readouterr().out
    assert "site/page.html: 3 stored runs" in out and "README.md" in out
    html = (project / "site" / "page.html").read_text()
    assert html.count("<article") == 3
    board = readme.read_text()
    assert "? inconclusive" in board and "smoke" not in board

    assert main(["report", "runs"]) == 0
    assert (project / "report.html").read_text().count("<article") == 1
    assert readme.read_text() == board  # only verdicts of record, whatever was asked for


def test_broken_records_are_named_and_skipped(project, capsys):
    main(["run", "fake", "--preset", "smoke"])
    broken = project / "runs" / "broken"
    broken.mkdir()
    for text in ("{", "[1]"):
        (broken / "verdict.json").write_text(text)
        assert main(["report"]) == 0
        assert "skipped" in capsys.readouterr().err
        assert (project / "report.html").read_text().count("<article") == 1


def test_a_page_that_cannot_be_written_is_refused_in_one_sentence(project, capsys):
    main(["run", "fake", "--preset", "smoke"])
    assert main(["report", "--out", "runs"]) == 2
    assert "runs cannot be written: Is a directory" in capsys.readouterr().err


def test_list_shows_experiments_verdicts_and_failures(project, capsys):
    main(["run", "fake", "--out", "experiments/results/fake-small"])
    main(["run", "fake", "--preset", "smoke", "--out", "experiments/results/fake-smoke"])
    bad = project / "experiments" / "bad.py"
    bad.write_text("PAPER = PRESETS = 1\nraise RuntimeError('no such data')\n")
    capsys.readouterr()
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for text in ("fake", "99 Warm", "smoke, small, paper", "inconclusive (small, n = 16)"):
        assert text in out
    assert "smoke (" not in out  # a smoke run is no verdict
    assert "cannot be loaded: no such data" in out
