"""Start an engine, say so, and wait to be killed."""

import sys
import time

if __name__ == "__main__":
    from evalkit.models.checkpoint import Checkpoint
    from tests.backends import vllm

    backend = vllm(Checkpoint.open(sys.argv[1]))
    print("ready", flush=True)
    while True:
        time.sleep(1)
