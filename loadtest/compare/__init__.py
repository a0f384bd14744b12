"""Compare this source tree with a base commit, in alternating runs on the same machine.

How it measures:

* The base is a temporary git worktree. Each tree builds its own tiny models and serves them with its own code, in the
  same virtual environment. The load generator is this tree's for both.
* A pair is one measurement of each tree, one right after the other; the order alternates from pair to pair.
* A result is the median over all pairs. The ratio is this tree's median over the base's; the lowest and highest ratio
  of a single pair show the noise.
* "Other load" is the CPU that processes outside the measurement used meanwhile, in cores.
"""
