import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # toydomain, for the tests and the processes they start


@pytest.fixture
def toy(tmp_path):
    """Run one command of the toy domain in a process of its own: `toy("train", "auto", TOY_KILL=...) -> status`."""
    from toydomain import child

    def run(*words, **env):
        return child.run([str(word) for word in words], tmp_path / "log.txt", **env)

    run.log = tmp_path / "log.txt"
    return run
