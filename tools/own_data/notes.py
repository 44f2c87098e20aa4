"""Notes that a tool prints at its end, after an error too."""


class Notes:
    """Observations, each kind once: how often, and where first. `with Notes() as notes` prints them at its end.

    It prints them after an error too, since they often hold its reason.
    """

    def __init__(self):
        self.kinds = {}

    def add(self, kind, where):
        self.kinds.setdefault(kind, []).append(where)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for kind, places in self.kinds.items():
            print(f"note: {kind}: {len(places)} (first: {places[0]})", flush=True)
