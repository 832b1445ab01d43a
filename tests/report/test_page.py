import base64
import dataclasses
import re
from html.parser import HTMLParser

from jaxlab.report import page
from jaxlab.report.board import board

VOID = {"meta", "link", "img", "br"}


class Checker(HTMLParser):
    """Balanced tags, and every address that a browser would follow."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.tags = [], [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
                self.addresses.append(value)
            if name == "id":
                assert value not in self.ids, value
                self.ids.add(value)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else(stored):
    html = page.render(stored)
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert not checker.tags & {"script", "iframe", "object", "form"}
    outside = [a for a in checker.addresses if not a.startswith(("#", "data:"))]
    assert outside == []
    assert all(a[1:] in checker.ids for a in checker.addresses if a.startswith("#"))
    assert not re.search(r"url\(|@import|https?:", html)
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html


def test_plots_are_embedded_as_they_are(stored):
    html = page.render(stored)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(images) == 9
    directory, record = stored[0]
    first = directory / record.files["plots"][0]["file"]
    assert base64.b64decode(images[0]) == first.read_bytes()


def test_a_record_cannot_embed_files_from_elsewhere(stored, tmp_path):
    _, record = stored[0]
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        plots = [{"file": name, "description": "x"}]
        foreign = dataclasses.replace(record, files={"plots": plots, "datasets": []})
        html = page.render([(tmp_path / "run", foreign)])
        assert base64.b64encode(b"secret").decode() not in html
    (tmp_path / "run" / "secret.png").write_bytes(b"secret")  # the same name, where it belongs
    assert base64.b64encode(b"secret").decode() in page.render([(tmp_path / "run", foreign)])


def test_everything_is_escaped(stored):
    html = page.render(stored)
    for raw in ("<starts>", "<angle brackets>", "<of>"):
        assert raw not in html
    assert "Warm &lt;starts&gt; &amp; cold ones" in html


def test_page_shows_what_a_reader_needs(stored):
    html = page.render(stored)
    for text in (
        "jaxlab run fake --preset small --seeds 17",
        "modified: seeds 16 -&gt; 17",
        "The shift helps.",
        "Runs without a verdict",
        "learns",
        stored[0][1].versions["jax"],
        stored[0][1].parts[0].claim.digest(),
    ):
        assert text in html
    assert "<b>0.05</b> false" in html  # two judged records at alpha / 2 each


def test_smoke_runs_stay_off_the_board(stored):
    html = page.render(stored)
    head, _, tail = html.partition("Runs without a verdict")
    assert "preset smoke" not in head and "smoke" in tail


def test_only_smoke_runs_still_make_a_page(stored):
    html = page.render(stored[2:])
    assert "No verdict yet" in html and "Verdict board" not in html


def test_board_puts_the_threshold_at_one(stored):
    _, record = stored[0]
    part = record.parts[0]
    alone = dataclasses.replace(record, parts=(part,))

    def positions(effect):
        verdict = dataclasses.replace(part.verdict, estimate=effect, low=effect, high=effect)
        new = dataclasses.replace(alone, parts=(dataclasses.replace(part, verdict=verdict),))
        html = board([new], ["x"])
        bar = re.search(r'track-bar" x1="([\d.]+)%"', html)
        one = re.search(r'track-one" x1="([\d.]+)%"', html)
        return float(bar[1]), float(one[1])

    bar, one = positions(part.claim.threshold)
    assert bar == one
    assert positions(0.8 * part.claim.threshold)[0] < one < positions(1.2 * part.claim.threshold)[0]


def test_board_survives_extremes(stored):
    _, record = stored[0]
    part = record.parts[0]
    for numbers in ((None, None, None), (1e9, -1e9, 1e12), (-1e9, -2e9, -5e8)):
        verdict = dataclasses.replace(
            part.verdict, **dict(zip(("estimate", "low", "high"), numbers))
        )
        parts = (dataclasses.replace(part, verdict=verdict),)
        html = board([dataclasses.replace(record, parts=parts)], ["x"])
        assert "nan" not in html and "inf" not in html
        for x in re.findall(r'x[12]?="([-\d.]+)%"', html):
            assert 0 <= float(x) <= 100
    assert board([], []) == ""
