"""Figures hold the numbers that they are drawn from."""

import pytest

from gen_core.harness import report


def record(method, values, baseline, paper, name="base"):
    return {
        "method": method, "recipe": "data", "metric": "accuracy", "unit": "%", "values": values, "paper": paper,
        "claim_against": name, "baselines": {"base": {"values": baseline}},
    }  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The axes that are drawn on."""
    found = []
    plain = report._axes

    def spy(*size):
        figure, axes = plain(*size)
        found.append(axes)
        return figure, axes

    monkeypatch.setattr(report, "_axes", spy)
    return found


def test_curves_of_a_record_have_files_of_their_names_and_decades_where_they_span_them(tmp_path, drawn):
    def band(x, y):
        return {"x": x, "middle": y, "low": [v - 1 for v in y], "high": [v + 1 for v in y]}

    curves = {
        "FD[net] over proposals": {"kind": "mean", "arms": {"one": band([1, 10, 500], [9.0, 5.0, 4.0])}},
        "gap over degrees": {"kind": "mean", "arms": {"one": band([0, 5, 45], [1.0, 2.0, 3.0])}},
        "H on test": {"kind": "mean", "arms": {"one": band([*range(1, 301)], [0.5] * 300)}},
    }
    whole = record("one", [1.0, 2.0], [], None, name=None) | {"curves": curves, "seeds": [0, 1]}
    files = report.curve_files(whole)
    assert list(files.values()) == ["data-FD-net.png", "data-gap.png", "data-H-on-test.png"]
    report.record_curves(whole, tmp_path)
    assert [axes.get_xscale() for axes in drawn] == ["log", "linear", "linear"]
    assert [axes.get_xlabel() for axes in drawn] == ["proposals", "degrees", "epoch"]
    assert list(drawn[0].get_lines()[0].get_ydata()) == [9, 5, 4]
    assert all((tmp_path / file).stat().st_size > 5000 for file in files.values())


def test_beside_paper_draws_means_and_spreads(tmp_path, drawn):
    rows = [
        record("one", [80.0, 84.0], [70.0, 70.0], {"value": 83.0, "std": 0.5, "source": "Table 1"}),
        record("two", [50.0], [], {"value": 60.0, "std": None, "source": "Table 1"}),
        record("three", [1.0, 2.0], [], None, name=None),
    ]
    report.beside_paper(rows, tmp_path / "a.png")
    (axes,) = drawn
    found = []
    for bars in axes.containers:
        line, _, (segments,) = bars
        low, high = segments.get_segments()[0][:, 0]
        found.append((float(line.get_xdata()[0]), round(float(line.get_ydata()[0]), 2), float(high - low) / 2))
    spread = 8**0.5
    assert [mean for mean, _, _ in found] == [82, 70, 83, 50, 60, 1.5]
    assert [width for _, _, width in found] == pytest.approx([spread, 0, 0.5, 0, 0, 0.5**0.5])
    assert [place for _, place, _ in found] == [-0.15, 0.15, 0, 0.85, 1, 1.85]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one/data", "two/data", "three/data"]
    assert (tmp_path / "a.png").stat().st_size > 5000
