"""The lines that an evaluation prints."""

from reporting.metrics import METRICS, SIX_RECALLS, printed_lines


def print_metrics(metrics):
    """Print the block of metrics, and a line on equal scores if they change a recall."""
    for line, entries in printed_lines().items():
        print(f"{line}: {' '.join(f'{metrics[entry.key]:.1f}' for entry in entries)}")
    print_ties(metrics)


def print_fold(metrics):
    """The shorter block of one of five folds: the lines of several figures, then the others in one line."""
    alone = []
    for line, entries in printed_lines().items():
        if len(entries) > 1:
            print(f"{line}: {', '.join(f'{metrics[entry.key]:.1f}' for entry in entries)}")
        else:
            alone.append(f"{entries[0].key}: {metrics[entries[0].key]:.1f}")
    print(" ".join(alone))
    print_ties(metrics)


def print_folds(mean):
    """Each fold's block, then that of their mean."""
    for fold in mean["folds"]:
        print_fold(fold)
    print("-----------------------------------")
    print("Mean metrics: ")
    print_metrics(mean)


def print_ties(metrics):
    """Print ties_line, if there is one."""
    if line := ties_line(metrics):
        print(line)


def ties_line(metrics):
    """One line with the recalls that depend on the order of equal scores, or ''."""
    ties = metrics["ties"]
    moved = [key for key in SIX_RECALLS if ties["worst"][key] != ties["best"][key]]
    values = [
        "{} {:.2f} to {:.2f} ({:.2f})".format(
            metric.full_title, *(ties[k][metric.key] for k in ("worst", "best", "released"))
        )
        for metric in sorted(METRICS, key=lambda metric: metric.key == "rsum")
        if metric.key in (*moved, "rsum")
    ]
    return f"Equal scores, lowest to highest (released order): {', '.join(values)}" if moved else ""
