"""The lines that an evaluation prints."""

from reporting.ranks import RECALLS

NAMES = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}


def print_metrics(metrics):
    """Print the block of metrics, and a line on equal scores where they change a recall."""
    print(f"rsum: {metrics['rsum']:.1f}")
    print(f"Average i2t Recall: {metrics['ar']:.1f}")
    print("Image to text: {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*(metrics[k] for k in RECALLS)))
    print(f"Average t2i Recall: {metrics['ari']:.1f}")
    print("Text to image: {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}".format(*(metrics[k + "i"] for k in RECALLS)))
    print_ties(metrics)


def print_fold(metrics):
    """The shorter block of one of five folds."""
    print("Image to text: {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*(metrics[k] for k in RECALLS)))
    print("Text to image: {:.1f}, {:.1f}, {:.1f}, {:.1f}, {:.1f}".format(*(metrics[k + "i"] for k in RECALLS)))
    print(f"rsum: {metrics['rsum']:.1f} ar: {metrics['ar']:.1f} ari: {metrics['ari']:.1f}")
    print_ties(metrics)


def print_folds(mean):
    """Each fold's block, then that of their mean."""
    for fold in mean["folds"]:
        print_fold(fold)
    print("-----------------------------------")
    print("Mean metrics: ")
    print_metrics(mean)


def print_ties(metrics):
    """One line with the recalls that depend on the order of equal scores; nothing where none does."""
    if line := ties_line(metrics):
        print(line)


def ties_line(metrics):
    """The line that print_ties prints, or ''."""
    ties = metrics["ties"]
    moved = [name + way for way in ("", "i") for name in NAMES if ties["worst"][name + way] != ties["best"][name + way]]
    values = ", ".join(f"{title(name)} {range_of(ties, name)}" for name in [*moved, "rsum"])
    return f"Equal scores, lowest to highest (released order): {values}" if moved else ""


def title(name):
    """A metric's name as printed: 'r1i' -> 't2i R@1'."""
    return name if name == "rsum" else f"t2i {NAMES[name[:-1]]}" if name.endswith("i") else f"i2t {NAMES[name]}"


def range_of(ties, name):
    return "{:.2f} to {:.2f} ({:.2f})".format(*(ties[order][name] for order in ("worst", "best", "released")))
