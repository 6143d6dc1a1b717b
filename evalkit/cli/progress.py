"""Progress of a run (in prompt tokens: a 128K prompt takes longer than a 1K one), of a training, of a whole study."""

import re
import sys
import time
from collections.abc import Sequence
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from evalkit.cli.terminal import echo, fitted
from evalkit.lengths import parse_length
from evalkit.runs.run import Observer
from evalkit.runs.status import duration
from evalkit.types import Prediction

if TYPE_CHECKING:
    from evalkit.study.steps import Step


class _Bar:
    """Draws a bar and takes it away at the end; where there is no terminal, as in a log, writes a plain line a minute.

    A thread writes it, so that it also comes while nothing is told, as in a step that takes an hour.
    """

    every: ClassVar[float] = 60.0
    """Seconds between two plain lines."""

    def __init__(self, *, quiet: bool = False, **bar: Any) -> None:
        """Take what tqdm is to draw; ``quiet``: show nothing."""
        from tqdm import tqdm

        self._quiet, self._is_terminal = quiet, sys.stderr.isatty()
        self._bar = tqdm(dynamic_ncols=True, disable=quiet or not self._is_terminal, **bar)
        self._doing, self._started = "", time.monotonic()
        self._ended = Event()
        self._teller = Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        if not (self._quiet or self._is_terminal):
            self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._teller.is_alive():
            self._teller.join()
        self._bar.close()

    def phase(self, name: str) -> None:
        """Say what begins, in a line of its own: what libraries say meanwhile comes below it."""
        self._doing, self._started = name, time.monotonic()
        if not self._quiet:
            self._say(name)

    @property
    def _seconds(self) -> float:
        """Since what is done began."""
        return time.monotonic() - self._started

    def _line(self) -> str:
        """How far it is."""
        return f"{self._doing}, {duration(self._seconds)} so far"

    def _tell(self) -> None:
        while not self._ended.wait(self.every):
            self._say(self._line())

    def _say(self, line: str) -> None:
        with self._bar.external_write_mode():
            print(fitted(line, err=True), file=sys.stderr, flush=True)


class Progress(_Bar, Observer):
    """Names what the run is doing; then samples done, samples and tokens per second, and the time left."""

    def __init__(self) -> None:
        self._samples = self._total_samples = 0
        self._sent = self._back = 0
        self._tokens = self._total_tokens = 0
        self._length, self._began = "", time.monotonic()
        super().__init__(total=0, unit="tok", unit_scale=True, bar_format="{desc}")

    def phase(self, name: str) -> None:
        """Say what the run is doing; that it is answering, its answers say."""
        if name != "answering":
            super().phase(name)
            return
        self._doing, self._started = name, time.monotonic()
        if not self._samples:  # what came before says nothing about the time that is left
            self._began = self._started
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
        """Show how many prompts the engine has, as long as none is answered: the first may take minutes.

        It may be told in another thread than answers are, so it counts nothing that they count.
        """
        self._sent += 1
        if not self._samples:
            self._bar.set_description_str(f"answering, {self._in_flight} in flight")

    def answered(self, prediction: Prediction) -> None:
        """Count one recorded prediction."""
        self._samples += 1
        self._back += bool(prediction.prompt_sha256)
        self._tokens += _tokens(prediction.length)
        self._length = prediction.length
        if self._is_terminal:
            self._bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}{postfix}, {remaining} left"
            self._bar.set_description_str(self._done, refresh=False)
            self._bar.set_postfix_str(f"{self._rate}{self._flying}", refresh=False)
            self._bar.update(_tokens(prediction.length))

    def _line(self) -> str:
        if self._doing != "answering":
            return super()._line()
        if not self._samples:
            return f"answering{self._flying}, {duration(self._seconds)} so far"
        left = duration((self._total_tokens - self._tokens) * (time.monotonic() - self._began) / self._tokens)
        return f"{self._done}{self._flying}, {self._rate}, {left} left"

    @property
    def _done(self) -> str:
        return f"{self._length} {self._samples}/{self._total_samples}"

    @property
    def _rate(self) -> str:
        return f"{self._samples / max(1e-9, time.monotonic() - self._began):.2f} samples/s"

    @property
    def _in_flight(self) -> int:
        """None of them is told of where engines are on Ray."""
        return max(0, self._sent - self._back)

    @property
    def _flying(self) -> str:
        return f", {self._in_flight} in flight" if self._in_flight else ""


def _tokens(length: str) -> int:
    return max(1, parse_length(length))


class TrainProgress(_Bar):
    """Names what a training is doing; then steps done, the last loss, the pace, and the time left."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._before = self._done = self._total = 0
        self._loss = ""
        super().__init__(quiet=quiet, unit="step")

    def phase(self, name: str) -> None:
        """Say what the training is doing."""
        self._total = 0
        super().phase(name)

    def step(self, done: int, total: int) -> None:
        """Show a step that is done."""
        self._done = done
        if not self._total:
            self._before = done - 1  # by an earlier command, which says nothing about the pace
        self._total = total
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def loss(self, loss: float) -> None:
        """Show the loss."""
        self._loss = f", loss {loss:.4g}"
        self._bar.set_postfix(loss=f"{loss:.4g}")

    def note(self, notice: str) -> None:
        """Say what a person should know."""
        self._say(f"note: {notice}")

    def _line(self) -> str:
        if not self._total:
            return super()._line()
        per_step = self._seconds / (self._done - self._before)
        pace = f"{per_step:.1f} s a step" if per_step > 1 else f"{1 / max(1e-9, per_step):.1f} steps/s"
        left = duration((self._total - self._done) * per_step)
        return f"step {self._done}/{self._total}{self._loss}, {pace}, {left} left"


_MOST_NAMED = 3
"""Steps of a study that a line names."""


class StudyProgress(_Bar):
    """Shows how much of a study's estimated work is done, and the time left; in a log also what is being done."""

    def __init__(self, steps: "Sequence[Step]", *, quiet: bool = False) -> None:
        """Take the steps of the plan; ``quiet``: show nothing but the notes of a report."""
        from evalkit.study.estimate import estimated_seconds

        self._estimates = {str(step): estimated_seconds(step) for step in steps}
        self._shares: dict[str, float] = {}
        self._worked = 0.0
        super().__init__(
            quiet=quiet,
            total=sum(self._estimates.values()),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left",
        )

    def goes_on(self, step: "Step", share: float) -> None:
        """Draw a step of which this share is done, 0 where it begins."""
        key = str(step)
        before = self._shares.setdefault(key, 0.0)
        if share > before:
            gained = (share - before) * self._estimates[key]
            self._worked += gained if before else 0.0  # what a first share tells may be an earlier command's work
            self._bar.set_description_str(key, refresh=False)
            self._bar.update(gained)
            self._shares[key] = share

    def _line(self) -> str:
        shares = dict(self._shares)
        doing = [f"{key} ({share:.0%})" for key, share in shares.items() if share < 1]
        more = [f"{len(doing) - _MOST_NAMED} more"] if len(doing) > _MOST_NAMED else []
        parts = [f"{len(shares) - len(doing)}/{len(self._estimates)} steps done", *doing[:_MOST_NAMED], *more]
        if self._worked:
            to_do = sum(seconds * (1 - shares.get(key, 0.0)) for key, seconds in self._estimates.items())
            parts.append(f"{duration(to_do * self._seconds / self._worked)} left")
        return "; ".join(parts)

    def is_finished(self, step: "Step", what: str) -> None:
        """Write a line about a finished step."""
        self.goes_on(step, 1.0)
        if self._quiet:
            notes = re.search(r"^note: .*", what, re.DOTALL | re.MULTILINE)
            echo(notes[0] if notes else "", nl=notes is not None, err=True)
            return
        with self._bar.external_write_mode():
            echo(f"{step}: {what}")  # without colours where there is no terminal
