"""Progress bars: of a run, in prompt tokens, since a 128K prompt takes longer than a 1K one; and of a whole study."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from evalkit.lengths import parse_length
from evalkit.runs.run import Observer
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
    """Shows samples done, tokens and samples per second, and the time left. Silent where there is no terminal."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._samples = self._total_samples = 0
        self._started = time.monotonic()
        self._bar = tqdm(
            total=0,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {rate_fmt}{postfix}, {remaining} left",
        )

    def starts(self, lengths: Sequence[str]) -> None:
        """Set what is to be done: one length label per sample."""
        self._total_samples = len(lengths)
        self._bar.reset(total=sum(max(1, parse_length(length)) for length in lengths))
        self._started = time.monotonic()

    def answered(self, prediction: Prediction) -> None:
        """Count one recorded prediction."""
        self._samples += 1
        rate = self._samples / max(1e-9, time.monotonic() - self._started)
        self._bar.set_description_str(f"{prediction.length} {self._samples}/{self._total_samples}", refresh=False)
        self._bar.set_postfix_str(f"{rate:.2f} samples/s", refresh=False)
        self._bar.update(max(1, parse_length(prediction.length)))


class StudyProgress(_Bar):
    """Shows how much of a study's estimated work is done, and the time left. Silent where there is no terminal."""

    def __init__(self, steps: "Sequence[Step]") -> None:
        """Take the steps of the plan."""
        from tqdm import tqdm

        from evalkit.study.steps import estimated_seconds

        self._seconds = {str(step): estimated_seconds(step) for step in steps}
        self._shares = dict.fromkeys(self._seconds, 0.0)
        self._bar = tqdm(
            total=sum(self._seconds.values()),
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
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
        import click

        self.goes_on(step, 1.0)
        with self._bar.external_write_mode():
            click.echo(f"{step}: {what}")  # without colours where there is no terminal
