"""`gen demo`: the page is self-contained and says what the records say."""

import html.parser

import pytest

from gen_core.harness import demo, registry

RECORD = {
    "method": "dgi", "recipe": "csbm", "dataset": "csbm", "metric": "accuracy", "unit": "%", "values": [80.0, 82.0],
    "baselines": {"untrained": {"values": [50.0, 51.0], "gain": 30.5, "gain_ci95": [28.0, 33.0]}},
    "claim_against": "untrained", "verdict": "preliminary", "seconds": 12.3, "hardware": "a <machine>",
    "note": "a note",
}  # fmt: skip


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("src", "href") and not value.startswith("data:"):
                self.found.append(value)
            self.images += key == "src"


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "figures" / "graph-dgi"
    folder.mkdir(parents=True)
    (folder / "embedding.png").write_bytes(b"\x89PNG not really")
    return demo.write_page(tmp_path, registry.domains(), {"graph": RECORD}).read_text()


def test_the_page_needs_no_network(page):
    links = Links()
    links.feed(page)
    assert links.found == []
    assert links.images == 1
    assert "url(" not in page
    assert "@import" not in page


def test_the_page_says_what_the_record_says(page):
    for text in ("dgi/csbm", "81.00 ± 1.41", "untrained: 50.50 ± 0.71", "+30.50 [+28.00, +33.00]", "preliminary", "12"):
        assert text in page
    assert "a &lt;machine&gt;" in page  # escaped
    assert "installed, no method yet" in page
    assert "gen-graph reproduce dgi/csbm" in page


def test_a_row_without_a_claim_shows_the_strongest_baseline_and_a_smoke_test_says_so():
    weak, strong = (
        {"values": [20.0], "gain": 60.0, "gain_ci95": None},
        {"values": [79.0], "gain": 1.0, "gain_ci95": None},
    )
    record = RECORD | {"claim_against": None, "baselines": {"weak": weak, "strong": strong}, "note": "smoke: quick"}
    row = demo._row(record)
    assert (row["method"], row["baseline"]) == ("smoke: dgi/csbm", "strong: 79.00")


def test_demo_without_a_method_is_wrong_use(monkeypatch, tmp_path, capsys):
    from gen_core.harness import cli

    monkeypatch.setattr(registry, "domains", dict)
    assert cli.main(None, ["demo", "--out", str(tmp_path)]) == 2
    assert "install gen-vision or gen-graph" in capsys.readouterr().err
