"""On which chips, with which Triton, the kernels were seen to be right: what the records in
benchmarks/results say, for retnet/ops/triton/verified.json.

    python benchmarks/verified.py            # show
    python benchmarks/verified.py --write    # and write it into the package
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import retnet

RESULTS = Path(__file__).parent / "results"
VERIFIED = Path(retnet.__file__).parent / "ops" / "triton" / "verified.json"


def verified(records: Iterable[Path]) -> list[list[str]]:
    """[chip, Triton's version] of each record whose gate our kernels passed, all of it."""
    found = set()
    for path in records:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        machine = next(row for row in rows if row["section"] == "machine")
        ends = [row for row in rows if row["section"] == "gate" and "was_cut_short" in row]
        checks = [row for row in rows if row.get("contender") == "ours triton" and "passed" in row]
        is_whole = bool(ends) and not ends[-1]["was_cut_short"] and not machine["toy"]
        if is_whole and checks and all(row["passed"] for row in checks):
            found.add((machine["arch"], machine["versions"]["triton"]))
    return sorted(map(list, found))


if __name__ == "__main__":
    pairs = verified(RESULTS.glob("gpu-*.jsonl"))
    print(json.dumps(pairs))
    if "--write" in sys.argv[1:]:
        VERIFIED.write_text(json.dumps(pairs) + "\n", encoding="utf-8")
