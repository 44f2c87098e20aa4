"""Whether a model tells twins apart: scenes that differ only in two exchanged things."""

import numpy as np

from files.errors import InputError


def told_apart(sims, scenes):
    """Similarities (images, captions) of the scenes of a scenes.json -> percent.

    The share of the captions that are true of their scene and false of its twin, and that score higher with their
    own scene.
    """
    if sims.shape != (len(scenes), 5 * len(scenes)):
        raise InputError(f"similarities {sims.shape}, but {len(scenes)} scenes; give the tested split's scenes.json")
    higher = [
        sims[i, 5 * i + k] > sims[scene["twin"], 5 * i + k]
        for i, scene in enumerate(scenes)
        for k in np.flatnonzero(scene["telling"])
    ]
    return 100 * float(np.mean(higher))
