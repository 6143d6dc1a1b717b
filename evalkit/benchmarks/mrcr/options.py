"""What can be chosen about the questions of MRCR."""

from dataclasses import dataclass

from evalkit.benchmarks.options import TaskOptions
from evalkit.options import option


@dataclass(frozen=True, kw_only=True)
class MRCROptions(TaskOptions):
    """How many needles."""

    needles: tuple[int, ...] = option("--needles", "2,4,8: the same as --subsets 2needle,4needle,8needle.", default=())

    @property
    def subsets(self) -> tuple[str, ...]:
        """The subsets with these numbers of needles."""
        return tuple(f"{number}needle" for number in self.needles)
