import pytest

from edged.lab.report.building import Report, build_report
from tests.unit.lab.recorded import write_run


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report(write_run(tmp_path_factory.mktemp("run") / "run"))
