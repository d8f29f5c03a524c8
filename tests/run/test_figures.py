"""Figures as files: whole, closed afterwards, and left out in one line where matplotlib is missing."""

from __future__ import annotations

import sys

import pytest

from accel_train.run.figures import new_figure, pictures, pixels, save_figures


class Figure:
    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def savefig(self, path, dpi, format):
        path.write_text(f".{format} {dpi}")
        if self.fails:
            raise OSError("disk full")


def test_a_figure_may_be_named_like_a_curve(tmp_path):
    assert save_figures(tmp_path / "figures", lambda: {"a/b": Figure(), "../c": Figure()}) == ["a/b", "../c"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["..-c.png", "a-b.png"]


def test_several_formats_and_a_look_before(tmp_path):
    seen = []
    assert save_figures(tmp_path, lambda: {"a": Figure()}, show=seen.append, suffixes=("png", "pdf"), dpi=200) == ["a"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.png": ".png 200", "a.pdf": ".pdf 200"}
    assert [list(each) for each in seen] == [["a"]]


def test_half_a_figure_is_none(tmp_path):
    save_figures(tmp_path, lambda: {"a": Figure()})
    with pytest.raises(OSError, match="disk full"):
        save_figures(tmp_path, lambda: {"a": Figure(fails=True)}, dpi=7)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.png": ".png 120"}
    with pytest.raises(AttributeError, match="savefig"):
        save_figures(tmp_path / "new", lambda: {"a": None})
    assert not (tmp_path / "new").exists()


def test_without_matplotlib_there_is_a_line(tmp_path, monkeypatch, capsys):
    def draw():
        import matplotlib.figure  # noqa: F401

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert save_figures(tmp_path / "new", draw) == []
    assert capsys.readouterr().err.endswith("(pip install 'accel_train[plots]')\n")
    assert not (tmp_path / "new").exists()

    def draw_with_another():
        import scipy.no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError, match="scipy"):
        save_figures(tmp_path, draw_with_another)


def test_figures_of_pyplot_are_closed(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    assert save_figures(tmp_path, lambda: {"a": pyplot.figure(), "b": pyplot.figure()}) == ["a", "b"]
    assert pyplot.get_fignums() == before and (tmp_path / "b.png").stat().st_size > 1000
    with pytest.raises(RuntimeError, match="no drawing"):
        save_figures(
            tmp_path, lambda: {"a": pyplot.figure()}, show=lambda _: (_ for _ in ()).throw(RuntimeError("no drawing"))
        )
    assert pyplot.get_fignums() == before


def test_a_footer_says_what_a_figure_is_of(tmp_path):
    """Below the axes, where the layout leaves room for it."""
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    axes = figure.subplots()
    axes.set_xlabel("time")
    save_figures(tmp_path, lambda: {"a": figure}, footer="runs/a, step 1,000")
    (text,) = figure.texts
    drawn = agg.FigureCanvasAgg(figure).get_renderer()
    figure.draw(drawn)
    assert text.get_text() == "runs/a, step 1,000"
    assert text.get_window_extent(drawn).y1 <= axes.get_tightbbox(drawn).y0


def test_figures_and_pictures_show_themselves_in_a_notebook(tmp_path):
    pytest.importorskip("matplotlib")
    formatters = pytest.importorskip("IPython.core.formatters")
    figure = new_figure(2, 1)
    save_figures(tmp_path, lambda: {"a/b": figure}, suffixes=("png", "pdf"))
    found = pictures(tmp_path)
    assert list(found) == ["a-b"] and pictures(tmp_path / "nowhere") == {} and "a-b.png" in repr(found["a-b"])
    for shown in (figure, found["a-b"]):
        data, _ = formatters.DisplayFormatter().format(shown)
        assert data["image/png"].startswith(b"\x89PNG")
    assert pixels(figure).shape == (100, 200, 4)
