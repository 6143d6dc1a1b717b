"""Who answers: checkpoints, rope rules, prompts as token ids, and the backends.

transformers is told to print errors alone, before anything here imports it. Its reports hold names as files have them,
control characters too; what matters in them is said here, in sentences. A TRANSFORMERS_VERBOSITY that is set stays.
"""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
