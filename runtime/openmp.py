"""How the threads of OpenMP wait; imported before torch, which loads OpenMP's library.

By default they spin for some milliseconds. On a machine with other work each step then waits for a thread that was put
aside, while the spinning ones keep its core: up to 70 times slower (docs/performance.md). Here they sleep, unless the
user chose a policy. Processes that this one starts inherit it.
"""

import os

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

if not any(name in os.environ for name in CHOICES):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
