"""``make test-gpu``, as a part of the measurements (ours)."""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from ....errors import UserError

ROOT = Path(__file__).parents[4]
FILE = "tests/models/test_gpu.py"  # what a dry run runs, on the CPU
_RESULT = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", re.M)


def run_tests(device: str, deadline: float) -> dict:
    """Run the tests that need a GPU, or on the CPU those of them that can do without.

    Args:
        device: 'cpu' or 'cuda'.
        deadline: when to stop them, as ``time.time()`` has it.

    Returns:
        ``counts`` by result, ``failed`` (names), ``finished`` (whether all were run) and ``output``
        (its end) where not all is well.

    Raises:
        UserError: if there is no checkout to test.
    """
    if not (ROOT / FILE).is_file():
        raise UserError(f"no {FILE} beside the package: run this from a checkout")
    which = ["-m", "gpu"] if device == "cuda" else [FILE, "-m", "not gpu and not slow"]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *which]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(deadline - time.time(), 1),
        )
        output, finished = done.stdout, done.returncode in (0, 1)
    except subprocess.TimeoutExpired as error:
        held = error.stdout or b""
        output, finished = held.decode() if isinstance(held, bytes) else held, False
    results = _RESULT.findall(output)
    failed = [name for name, result in results if result in ("FAILED", "ERROR")]
    report: dict = dict(counts=Counter(result.lower() for _, result in results), failed=failed)
    report["finished"] = finished and bool(results)
    return report if finished and results and not failed else report | dict(output=output[-20_000:])
