"""Makes a run folder's report: reads the folder, draws, writes `report.html` and `plots/*.png`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edged.errors import ConfigError
from edged.files import write_file
from edged.lab.runfolder import read_history, read_verdict

from .page import page
from .plots import draw


class Report(NamedTuple):
    page: Path
    plots: tuple[Path, ...]


def build_report(directory: Path) -> Report:
    """What is there of an older one is replaced. Raises RunDamaged; ConfigError: matplotlib is
    missing, or the folder cannot be written."""
    history, verdict = read_history(directory), read_verdict(directory)
    pictures = draw(history)
    plots = directory / "plots"
    try:
        plots.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{plots}: cannot be made: {error.strerror}") from error
    paths = []
    for picture in pictures:
        paths.append(plots / f"{picture.name}.png")
        write_file(paths[-1], picture.png, secret=False)
    path = directory / "report.html"
    write_file(path, page(history, verdict, pictures).encode(), secret=False)
    return Report(path, tuple(paths))
