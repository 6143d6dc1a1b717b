"""Progress bars: of a run, in prompt tokens, since a 128K prompt takes longer than a 1K one; and of a whole study."""

import re
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evalkit.cli.terminal import echo
from evalkit.lengths import parse_length
from evalkit.runs.run import Observer
from evalkit.runs.status import duration
from evalkit.types import Prediction

if TYPE_CHECKING:
    from evalkit.study.steps import Step


class _Bar:
    """Something that draws one bar, and takes it away at the end."""

    _bar: Any

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class Progress(_Bar, Observer):
    """Names what the run is doing; then samples done, samples and tokens per second, and the time left.

    In a terminal a bar; elsewhere, as in a log, one plain line every ``every`` seconds.
    """

    def __init__(self, every: float = 60.0) -> None:
        from tqdm import tqdm

        self._samples = self._total_samples = self._in_flight = 0
        self._tokens = self._total_tokens = 0
        self._started = self._told = time.monotonic()
        self._every = every
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=0,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not self._is_terminal,
            bar_format="{desc}",
        )

    def phase(self, name: str) -> None:
        """Say what the run is doing, in a line of its own: what engines say while they load comes below it."""
        if name != "answering":
            self._say(name)
        elif not self._samples:  # what came before says nothing about the time that is left
            self._started = self._told = time.monotonic()
            self._bar.start_t = self._bar.last_print_t = time.time()

    def resumes(self, recorded: int, to_ask: int) -> None:
        """Say how much is there already."""
        self._say(f"{recorded} recorded, {to_ask} to ask")

    def starts(self, lengths: Sequence[str]) -> None:
        """Set what is to be done: one length label per sample."""
        self._total_samples = len(lengths)
        self._total_tokens = sum(map(_tokens, lengths))
        self._bar.reset(total=self._total_tokens)

    def sent(self) -> None:
        """Show how many prompts the engine has, as long as none is answered: the first may take minutes."""
        self._in_flight += 1
        if not self._samples:
            self._bar.set_description_str(f"answering, {self._in_flight} in flight")

    def answered(self, prediction: Prediction) -> None:
        """Count one recorded prediction."""
        self._samples += 1
        self._in_flight -= bool(self._in_flight and prediction.prompt_sha256)
        self._tokens += _tokens(prediction.length)
        now = time.monotonic()
        seconds = max(1e-9, now - self._started)
        done, rate = f"{prediction.length} {self._samples}/{self._total_samples}", f"{self._samples / seconds:.2f}"
        flying = f", {self._in_flight} in flight" if self._in_flight else ""
        if not self._is_terminal:
            if now - self._told >= self._every:
                left = duration((self._total_tokens - self._tokens) * seconds / self._tokens)
                print(f"{done}{flying}, {rate} samples/s, {left} left", file=sys.stderr, flush=True)
                self._told = now
            return
        self._bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}{postfix}, {remaining} left"
        self._bar.set_description_str(done, refresh=False)
        self._bar.set_postfix_str(f"{rate} samples/s{flying}", refresh=False)
        self._bar.update(_tokens(prediction.length))

    def _say(self, line: str) -> None:
        with self._bar.external_write_mode():
            print(line, file=sys.stderr, flush=True)


def _tokens(length: str) -> int:
    return max(1, parse_length(length))


class StudyProgress(_Bar):
    """Shows how much of a study's estimated work is done, and the time left. Silent where there is no terminal."""

    def __init__(self, steps: "Sequence[Step]", *, quiet: bool = False) -> None:
        """Take the steps of the plan; ``quiet``: show nothing but the notes of a report."""
        from tqdm import tqdm

        from evalkit.study.estimate import estimated_seconds

        self._seconds = {str(step): estimated_seconds(step) for step in steps}
        self._shares = dict.fromkeys(self._seconds, 0.0)
        self._quiet = quiet
        self._bar = tqdm(
            total=sum(self._seconds.values()),
            dynamic_ncols=True,
            disable=quiet or not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left",
        )

    def goes_on(self, step: "Step", share: float) -> None:
        """Draw a step of which this share is done."""
        key = str(step)
        if share > self._shares[key]:
            self._bar.set_description_str(str(step), refresh=False)
            self._bar.update((share - self._shares[key]) * self._seconds[key])
            self._shares[key] = share

    def is_finished(self, step: "Step", what: str) -> None:
        """Write a line about a finished step."""

        self.goes_on(step, 1.0)
        if self._quiet:
            notes = re.search(r"^note: .*", what, re.DOTALL | re.MULTILINE)
            echo(notes[0] if notes else "", nl=notes is not None, err=True)
            return
        with self._bar.external_write_mode():
            echo(f"{step}: {what}")  # without colours where there is no terminal
