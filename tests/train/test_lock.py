import subprocess
import sys
from pathlib import Path

import pytest

from retnet.train.errors import TrainingError
from retnet.train.lock import locked

HOLD = """
import sys
from pathlib import Path
from retnet.train.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")
def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.touch()
    command = [sys.executable, "-c", HOLD, str(file)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match="another process is training in"), locked(file):
        pass
    holder.kill()
    holder.communicate()
    with locked(file):
        pass
