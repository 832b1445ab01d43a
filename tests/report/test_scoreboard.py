import dataclasses

from jaxlab.report import scoreboard


def test_only_verdicts_enter_the_table(record):
    statuses = ("reproduced", "not_reproduced", "inconclusive", "smoke", "invalid")
    records = [dataclasses.replace(record, status=status) for status in statuses]
    text = scoreboard.table(records)
    rows = [line for line in text.splitlines() if line.startswith("| 99")]
    assert len(rows) == 3
    assert "smoke" not in text and "invalid" not in text
    assert "at most 0.075" in text
    assert scoreboard.table(records[3:]) == "No verdict has been stored yet."


def test_cells_cannot_break_the_table(record):
    paper = record.paper | {"title": "a | b\n<c>"}
    row = scoreboard.table([dataclasses.replace(record, paper=paper)]).splitlines()[2]
    assert row.replace("\\|", "").count("|") == 9
    assert "<c>" not in row


def test_parts_on_fewer_seeds_are_not_counted_as_the_others(record):
    def cell(parts):
        row = scoreboard.table([dataclasses.replace(record, parts=tuple(parts))]).splitlines()[2]
        return row.split(" | ")[5]

    first = record.parts[0]
    fewer = dataclasses.replace(first, verdict=dataclasses.replace(first.verdict, n=16))
    aside = dataclasses.replace(fewer, claim=dataclasses.replace(first.claim, required=False))
    assert cell([first, aside]) == "17" and cell([first, fewer]) == "16 to 17"


def test_update_touches_only_what_stands_between_the_markers(record, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# top\n{scoreboard.BEGIN}\nstale text\n{scoreboard.END}\nbottom | <x>\n")
    assert scoreboard.update(readme, [record])
    text = readme.read_text()
    assert text.startswith(f"# top\n{scoreboard.BEGIN}\n")
    assert text.endswith(f"{scoreboard.END}\nbottom | <x>\n")
    assert scoreboard.table([record]) in text and "stale" not in text
    assert scoreboard.update(readme, [record]) and readme.read_text() == text


def test_without_markers_nothing_happens(tmp_path):
    readme = tmp_path / "README.md"
    assert not scoreboard.update(readme, [])
    readme.write_text(f"x\n{scoreboard.BEGIN}\n")
    assert not scoreboard.update(readme, [])
    assert readme.read_text() == f"x\n{scoreboard.BEGIN}\n"
