"""What several files share: small data sets, and runs without the figures and the page of each."""

from pathlib import Path

import pytest

from daad import mvtec
from tests.helpers.paper_data import make_collection


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all data sets, which no test changes."""
    return make_collection(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True, scope="module")
def without_reports() -> object:
    """Leave out what a run of photographs draws: it is tested elsewhere, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mvtec, "draw_figures", lambda *_: None)
        patch.setattr(mvtec, "write_report", lambda *_: None)
        yield
