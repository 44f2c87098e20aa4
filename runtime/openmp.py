"""How long the threads of OpenMP spin while they wait; imported before torch, which loads OpenMP's library.

By default they spin for some milliseconds. On a machine with other work each step then waits for a thread that lost its
core to another process, while the spinning threads keep theirs: a step takes many times longer. Threads that sleep at
once cost small models a sixth of their speed on a quiet machine, since a step starts thousands of short parallel loops.
A hundredth of a millisecond costs nothing there and helps on a busy machine nearly as much as sleeping at once does
(docs/performance.md has the figures). A policy that the user chose stays.
Processes that this one starts inherit it. The setting is that of GNU's OpenMP, which torch's wheels contain.
"""

import os

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "1000"  # rounds of an empty loop; 300,000 by default

if not any(name in os.environ for name in CHOICES):
    os.environ["GOMP_SPINCOUNT"] = SPINS
