"""Start an engine, say so, and wait to be killed."""

import sys
import time

if __name__ == "__main__":
    from evalkit.models.backends.vllm.backend import VLLMBackend
    from evalkit.models.checkpoint import Checkpoint
    from evalkit.models.rope.served import RopeRequest, served_rope

    checkpoint = Checkpoint.open(sys.argv[1])
    backend = VLLMBackend(checkpoint, served_rope(checkpoint, RopeRequest(), 256), max_model_len=256)
    print("ready", flush=True)
    while True:
        time.sleep(1)
