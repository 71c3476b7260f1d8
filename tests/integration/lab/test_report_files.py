import pytest

from edged.lab.report.building import Report
from edged.lab.report.figures import settled
from edged.lab.report.plots import convergence
from edged.lab.report.style import drawing
from edged.lab.runfolder import read_history


@pytest.mark.slow
def test_a_report_is_a_page_and_pictures(report: Report) -> None:
    assert {path.name for path in report.plots} == {
        "timeline.png", "answerers.png", "phases.png", "convergence.png", "starts.png",
        "links.png", "nodes.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.plots)
    markup = report.page.read_text()
    assert markup.count("<svg") == len(report.plots)
    for word in ("<script", "<image", "<foreignObject", "<!--", 'http-equiv="refresh'):
        assert word not in markup


@pytest.mark.slow
def test_the_same_rows_make_the_same_picture(report: Report) -> None:
    history = read_history(report.page.parent)
    with drawing():
        one, other = (convergence(settled(history), history.run.bounds) for _ in range(2))
    assert one == other
    assert "var(--ink)" in one.svg
