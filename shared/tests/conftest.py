import os
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)  # toydomain, for the tests and the processes they start
# Python 3.11's forkserver does not look at sys.path: without this it preloads nothing, and each cell imports Lightning.
os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def toy(tmp_path):
    """Run one command of the toy domain in a process of its own: `toy("train", "auto", TOY_KILL=...) -> status`."""
    from toydomain import child

    def run(*words, **env):
        return child.run([str(word) for word in words], tmp_path / "log.txt", **env)

    run.log = tmp_path / "log.txt"
    return run
