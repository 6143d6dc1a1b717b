"""Errors a person can act on.

    EvalkitError                 anything wrong with what was asked or given: exit code 2
    +-- BadInput                 an option, file, checkpoint or data set that cannot be used
    |   +-- LengthTooShort       a length that not even the wording of a prompt fits
    +-- ContextOverflow          one prompt does not fit its length; recorded, never truncated
    +-- RunFolderError           a run folder that is locked, damaged, of another schema, or another run's
    +-- EngineError              a model engine or server that cannot be started or has died for good
        +-- EngineLost           its process died or hangs; another one may answer

A message names the thing, the value, the rule and the way out, in one sentence. Only ``cli/commands.py`` turns these
into exit codes; everything else that escapes is a bug and keeps its traceback.
"""


class EvalkitError(Exception):
    """Base of every error that evalkit explains instead of tracing back."""


class BadInput(EvalkitError):
    """An option, file, checkpoint or data set that cannot be used as given."""


class LengthTooShort(BadInput):
    """A length that not even the wording of a prompt fits: no question can be asked there."""


class ContextOverflow(EvalkitError):
    """A prompt plus its answer does not fit the length bucket. Becomes a recorded prediction without a score."""


class RunFolderError(EvalkitError):
    """A run folder that cannot be written or read safely."""


class EngineError(EvalkitError):
    """A model engine or server that cannot be started, or has died more often than it may be restarted."""


class EngineLost(EngineError):
    """An engine whose process died or hangs: what it was asked can be asked of another one."""
