"""What a run has still to ask, known by name alone: samples are made when they are reached, however many there are."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evalkit.benchmarks.rows import row_number
from evalkit.errors import BadInput
from evalkit.records.folder import RunFolder
from evalkit.runs.answers import Ask, Asks
from evalkit.runs.plan import Cell, Plan


class _Part(NamedTuple):
    """What is left of a cell, of one time that it is asked."""

    cell: Cell
    repeat: int
    ids: frozenset[str] | None
    """None: all of them."""
    number: int


class Todo(Asks):
    """What is not recorded of some lengths, longest first; then what is to be repeated.

    It stays what it was when it was made, whatever is recorded meanwhile. Repeats come in the opposite order within a
    cell, so that other prompts share their batches: what that changes is noise, as between two runs.
    """

    def __init__(self, plan: Plan, folder: RunFolder, lengths: Sequence[str]) -> None:
        """Compare a plan with what is recorded.

        Raises:
            BadInput: a row of a file is another one than the one that was answered.
        """
        self._plan = plan
        self._parts = list(_parts(plan, folder, lengths))

    def __len__(self) -> int:
        """Return the number of answers that are wanted."""
        return sum(part.number for part in self._parts)

    def __iter__(self) -> Iterator[Ask]:
        """Make the samples, one after the other."""
        for part in self._parts:
            samples = self._plan.samples_of(part.cell)
            asks = (
                Ask(sample, part.cell.length, part.repeat)
                for sample in samples
                if part.ids is None or sample.sample_id in part.ids
            )
            yield from asks if part.repeat == 1 else reversed(list(asks))

    def lengths(self) -> Iterator[str]:
        """Yield the length label of each answer that is wanted."""
        for part in self._parts:
            yield from [part.cell.length] * part.number


def _parts(plan: Plan, folder: RunFolder, lengths: Sequence[str]) -> Iterator[_Part]:
    rows = {
        key._replace(sample_id=row): key.sample_id
        for key in folder.recorded()
        if (row := row_number(key.sample_id)) != key.sample_id
    }
    for repeat in range(1, plan.config.repeat + 1):
        for cell in plan.cells(lengths):
            to_ask = []
            for sample_id in plan.sample_ids[cell]:
                key = plan.key(cell, sample_id)
                before = rows.get(key._replace(sample_id=row_number(sample_id)), sample_id)
                if before != sample_id:
                    raise BadInput(
                        f"Row {sample_id} of {cell.subset} at {cell.length} is another one than {before}, which "
                        f"{folder.path} holds an answer to; use another --out, or the files of that time."
                    )
                if folder.needs_asking(key, repeat):
                    to_ask.append(sample_id)
            if to_ask:  # making samples anew takes longer than all else here
                all_of_it = len(to_ask) == len(plan.sample_ids[cell])
                yield _Part(cell, repeat, None if all_of_it else frozenset(to_ask), len(to_ask))
