"""One part, in the process that :func:`.run.run_gpu_benchmark` starts for it."""

import json
import sys

from .run import run_part

if __name__ == "__main__":
    run_part(**json.loads(sys.argv[1]))
