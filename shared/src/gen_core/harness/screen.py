"""What a long training shows while it runs."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Screen:
    """A progress bar on a terminal, at most one plain line in five seconds elsewhere; on stderr."""

    def __init__(self, total: int, done: int) -> None:
        self.done, self.printed = done, 0.0
        self.progress: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=console)
            self.task = self.progress.add_task("training", total=total, completed=done)
            self.progress.start()

    def move(self, done: int) -> None:
        """So many steps are done now."""
        self.done = done
        if self.progress:
            self.progress.update(self.task, completed=done)

    def show(self, text: str, last: bool = False) -> None:
        """What to say beside the bar, or on a line, where one is due or it is the last."""
        if self.progress:
            self.progress.update(self.task, description=text)
        elif last or time.monotonic() - self.printed >= 5:
            print(text, file=sys.stderr, flush=True)
            self.printed = time.monotonic()

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None
