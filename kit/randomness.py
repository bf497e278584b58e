"""Seeds as a pure function of the place in a run: nothing to save, nothing to restore."""

import numpy as np


def step_seed(*place: int) -> int:
    """A seed for (seed, step, micro-batch, 1 + rank), so that a step is a pure function of weights and place.

    A last number of 0 is for what all ranks draw alike.
    """
    return int(np.random.SeedSequence([p % 2**63 for p in place]).generate_state(1, np.uint64)[0] >> 1)
