"""A progress bar that counts prompt tokens, since a 128K prompt takes longer than a 1K one."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from evalkit.lengths import parse_length
from evalkit.run import Observer
from evalkit.types import Prediction


class Progress(Observer):
    """Shows samples done, tokens and samples per second, and the time left. Silent where there is no terminal."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._samples = self._total_samples = 0
        self._started = time.monotonic()
        self._bar: Any = tqdm(
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
