"""Runs one command in a process of its own, from a forkserver, and dies where a test says."""

import os
import signal
import sys
from pathlib import Path

from gen_core.harness import cli, reproduce, runs
from toydomain.registry import DOMAIN


def _body(words: list[str], env: dict[str, str], log: str) -> None:
    os.environ.update(env)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    if (moment := env.get("TOY_KILL", "")).startswith("save "):
        _die_in_save(int(moment.split()[1]))
    if uid := int(env.get("TOY_UID", "0")):
        _become(uid)
    status = cli.main(DOMAIN, words)
    sys.stdout.flush()
    os._exit(status)


def _become(uid: int) -> None:
    """Be another user from the moment a run folder is made: what is imported before may be root's alone."""
    real = runs.create

    def create(folder, header):
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        real(folder, header)

    runs.create = create


def _die_in_save(number: int) -> None:
    """Die while the checkpoint of that number is half written: its bytes are there in part, the rename is not done."""
    real, done = os.replace, []

    def replace(source, target):
        if str(target).endswith("last.ckpt"):
            done.append(target)
            if len(done) == number:
                os.truncate(source, Path(source).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    os.replace = replace


def run(words: list[str], log: Path, **env: str) -> int:
    """Exit status of the command; -9 where it was killed."""
    process = reproduce.context([DOMAIN]).Process(target=_body, args=(words, env, str(log)))
    process.start()
    process.join(120)
    return process.exitcode
