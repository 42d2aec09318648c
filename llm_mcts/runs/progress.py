"""Progress for people: a bar with accuracy so far, tokens per second and the time left; plain lines where no terminal is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm_mcts.runner import Record


class Meter:
    """Accuracy and speed of one stage so far."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.done = self.right = self.judged = self.failed = self.tokens = 0
        self.started = time.perf_counter()
        self.shown: Callable[[], None] = lambda: None
        """Called after each question."""

    def advance(self, record: Record) -> None:
        """Count one finished question."""
        self.done += 1
        self.failed += record.error is not None
        self.judged += record.correct is not None
        self.right += bool(record.correct)
        self.tokens += record.usage.generated_tokens
        self.shown()

    @property
    def text(self) -> str:
        """For example "accuracy 61.5 %, 2,410 tokens/s"."""
        seconds = max(1e-9, time.perf_counter() - self.started)
        parts = [f"accuracy {100 * self.right / self.judged:.1f} %"] if self.judged else []
        parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


class Reporter:
    """Reports progress on `console`."""

    def __init__(self, quiet: bool = False) -> None:
        """Quiet reporters say nothing at all."""
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line of text."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Meter]:
        """A stage of `total` questions; a bar on a terminal, and in any case a line at its end."""
        meter = Meter(title, total)
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task(title, total=total, info="")
                meter.shown = lambda: bar.update(task, completed=meter.done, info=meter.text)
                yield meter
        else:
            yield meter
        self.say(f"{title}: {meter.done} of {total} in {time.perf_counter() - meter.started:.0f} s, {meter.text}")
