"""Start an engine, say so, and wait to be killed."""

import sys
import time

if __name__ == "__main__":
    from evalkit.models.checkpoint import Checkpoint
    from evalkit.models.serving import RopeRequest, served_rope
    from evalkit.models.vllm import VLLMBackend

    checkpoint = Checkpoint.open(sys.argv[1])
    backend = VLLMBackend(checkpoint, served_rope(checkpoint, RopeRequest(), 256), max_model_len=256)
    print("ready", flush=True)
    while True:
        time.sleep(1)
