"""Twins of the demo scenes: two scenes with two things exchanged, and whether a model tells them apart."""

import numpy as np

from files.errors import InputError

CLAIMS = {"left": "left, right", "right": "left, right", "above": "above, below", "below": "above, below"}


def claim(facts):
    """What a caption says of its scene, in a word: one relation, or several facts."""
    return CLAIMS.get(facts[0][0], facts[0][0]) if len(facts) == 1 else "several facts"


def told_apart(sims, scenes):
    """Similarities (images, captions) of the scenes of a scenes.json -> {'twins': percent, 'twins: CLAIM': percent}.

    Percent of the captions that are true of their scene and false of its twin, and that score higher with their
    own scene.
    """
    if sims.shape != (len(scenes), 5 * len(scenes)):
        raise InputError(
            f"similarities of {sims.shape[0]} images and {sims.shape[1]} captions, but "
            f"{len(scenes)} scenes; give the scenes.json of the tested split"
        )
    right = {}
    for i, scene in enumerate(scenes):
        for k in np.flatnonzero(scene["telling"]):
            higher = sims[i, 5 * i + k] > sims[scene["twin"], 5 * i + k]
            for name in ("twins", f"twins: {claim(scene['facts'][k])}"):
                right.setdefault(name, []).append(higher)
    return {name: round(100 * float(np.mean(values)), 4) for name, values in right.items()}
