import base64
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from simulated_scores import simulate

from bayesmeta.baselines import no_pooling
from bayesmeta.heldout import POSTERIOR, explain, heldout_table, skills_matter
from bayesmeta.model_graph import model_graph_svg
from bayesmeta.report import (
    Code,
    Notice,
    Picture,
    Section,
    Table,
    Text,
    render_report,
    standard_sections,
    write_report,
)

EVIL = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"
REFLECT, HELD_OUT = simulate(60, seed=1), simulate(60, seed=2)
TABLE = heldout_table(REFLECT, HELD_OUT, {POSTERIOR: no_pooling(REFLECT, HELD_OUT)})


class Page(HTMLParser):
    """Collects the tags, every attribute value and the visible text; checks that tags close."""

    void = {"meta", "img", "br"}

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def picture():
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1], [0, 1])
    return figure


def sections(converged=True):
    return standard_sections(
        provenance={"model": EVIL, "seed": 0},
        status=f"Converged. {EVIL}",
        converged=converged,
        diagnostics=pd.DataFrame({"r_hat": [1.001, np.nan]}, index=[EVIL, "tau_E"]),
        heldout=TABLE,
        reproduce="bayesmeta demo --seed 0",
        gain=skills_matter(HELD_OUT),
        pictures=[Picture.of(picture(), alt=EVIL, caption=EVIL)],
        diagnostic_pictures=[Picture.of(picture(), alt="traces", form="png", dpi=50)],
        model_graph=model_graph_svg(),
    )


def test_page_has_every_section_and_the_verdict():
    page = Page(render_report(sections(), subtitle=EVIL))
    text = " ".join("".join(page.text).split())
    for heading in (
        "What was run",
        "Was the posterior worth having?",
        "What was learned",
        "Did the sampler converge?",
        "The model",
        "How to make this again",
    ):
        assert heading in text
    assert " ".join(explain(TABLE).split()) in text
    assert "bayesmeta demo --seed 0" in text
    assert all(str(name) in text for name in TABLE.index)
    assert page.tags.count("img") == 3


def test_all_text_is_data():
    page = Page(render_report(sections(), title=EVIL, subtitle=EVIL))
    assert "script" not in page.tags
    assert "".join(page.text).count("{{ 7 * 7 }}") >= 6
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_nothing_is_loaded_from_outside():
    html = render_report(sections())
    page = Page(html)
    for _tag, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), value[:60]
    assert "link" not in page.tags
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in html


def test_pictures_are_what_they_say():
    svg = Picture.of(picture(), alt="line")
    assert svg.data_uri.startswith("data:image/svg+xml;base64,")
    assert svg.content == Picture.of(picture(), alt="line").content
    png = Picture.of(picture(), alt="line", form="png", dpi=50)
    head, body = png.data_uri.split(",")
    assert head == "data:image/png;base64" and base64.b64decode(body) == png.content


def test_a_fit_that_did_not_converge_says_so_beside_its_numbers():
    assert "do not use" in render_report(sections(converged=False))
    assert "do not use" not in render_report(sections(converged=True))


def test_write_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    assert write_report(path, sections()) == path
    first = path.read_text(encoding="utf-8")
    assert first.startswith("<!DOCTYPE html>")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_text", full)
    with pytest.raises(OSError, match="full"):
        write_report(path, [Section("other", [Text("other")])])
    assert path.read_text(encoding="utf-8") == first
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_text_that_no_file_can_hold_is_replaced(tmp_path):
    half = "a trace \ud83d cut in half"
    write_report(tmp_path / "r.html", [Section(half, [Text(half), Code(half), Notice(half)])])
    assert "a trace ? cut in half" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_table_cells():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.123456, np.nan], "c": ["x", True]}, index=["p", "q"])
    table = Table.of(frame)
    assert table.rows == [["p", "1", "0.1235", "x"], ["q", "2", "nan", "True"]]
    assert [table.is_text(i) for i in range(4)] == [True, False, False, True]
