"""What this costs, beside its peers and its goals: ``python benchmarks/performance [--quick] [--docs] [part of a row]``

All contenders of a row do the same work in turns. Its figure is the median, over the rounds, of ours divided by theirs;
the spread is that of the middle half. Nothing fails when a goal is missed; the row says so.
"""

from __future__ import annotations

import argparse
import gc
import itertools

import counted
import on_ports
import processes
import taking_away
from contest import Result
from report import HEAD, machine, row, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="a part of the names of the rows to measure")
    parser.add_argument("--quick", action="store_true", help="few rounds: the figures are rough")
    parser.add_argument("--smoke", action="store_true", help="see that it runs: the figures mean nothing")
    parser.add_argument("--docs", action="store_true", help="write the table and the plot of docs/performance.md")
    options = parser.parse_args()
    if options.docs and (options.only or options.quick or options.smoke):
        parser.error("--docs is for all rows, measured in full")
    gc.freeze()  # the modules: so collecting before each sample takes no time
    results: list[Result] = []
    print(machine(), HEAD, sep="\n")
    kinds = counted, on_ports, taking_away, processes
    for contest in itertools.chain.from_iterable(kind.contests(0.02 if options.smoke else 1.0) for kind in kinds):
        rounds = 0 if options.smoke else max(2, contest.rounds // 5) if options.quick else contest.rounds
        for result in contest.run(options.only, rounds):
            print(row(result), flush=True)
            results.append(result)
    if options.docs:
        write(results)


if __name__ == "__main__":
    main()
