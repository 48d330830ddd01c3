import shutil
import sysconfig
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real text: some forty sources of the standard library."""
    folder = tmp_path_factory.mktemp("data")
    for source in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")):
        shutil.copy(source, folder)
    return folder
