"""The kinds of input: each spoils one sound thing in a folder of its own, and says which commands meet it.

A kind is a function of a source of chance, the folder of sound things (``Sound``) and an empty folder, in which it
writes what is spoilt; sound files stand there as links. It returns command lines, which are run one after the other.
"""

import random
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import of_checkpoints, of_commands, of_data, of_servers
from tests.fuzz.sound import Commands, Sound

KINDS: dict[str, tuple[int, Callable[[random.Random, Sound, Path], Commands]]] = {
    "config": (16, of_checkpoints.config),
    "tokenizer": (10, of_checkpoints.tokenizer),
    "weights": (10, of_checkpoints.weights),
    "adapter": (6, of_checkpoints.adapter),
    "template": (4, of_checkpoints.template),
    "flags": (18, of_commands.flags),
    "experiment": (6, of_commands.experiment),
    "evaluation": (4, of_commands.evaluation),
    "rows": (10, of_data.rows),
    "answers": (10, of_data.answers),
    "run_folder": (10, of_data.run_folder),
    "server": (10, of_servers.server),
}
"""Each with its share of a campaign."""
