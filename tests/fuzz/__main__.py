"""Fuzz for some time: python -m tests.fuzz --minutes 10 [KIND ...]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "helpers")]
    import torch

    from fuzz_harness import run
    from fuzz_kinds import KINDS

    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Fuzz the readers of fastcnn.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"some of {', '.join(KINDS)} (all)")
    parser.add_argument("--minutes", type=float, default=3.0, help="for all kinds together (%(default)s)")
    parser.add_argument("--count", type=int, default=10**9, help="most cases of each kind")
    parser.add_argument("--seed", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="list the messages")
    flags = parser.parse_args()
    if unknown := set(flags.kinds) - set(KINDS):
        parser.error(f"{', '.join(unknown)}: use some of {', '.join(KINDS)}")
    torch.set_num_threads(1)
    chosen = flags.kinds or list(KINDS)
    failed = 0
    for name in chosen:
        seeds = range(flags.seed, flags.seed + flags.count)
        outcome = run(KINDS[name], seeds, flags.minutes * 60 / len(chosen))
        failed += len(outcome.failures)
        print(f"{name:13} {outcome}", flush=True)
        if flags.verbose:
            print(*sorted(set(outcome.messages)), sep="\n")
        for failure in outcome.failures:
            print(f"  {failure}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
