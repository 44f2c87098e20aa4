"""The splits of a data folder: those with files, and those that a tool still has to make."""

from files.errors import InputError

SPLITS = ("train", "dev", "test", "testall")


def splits_asked(opt, folder, ending, missing):
    """The splits of --split, else those that have {split}_{ending}; InputError saying `missing` where none has."""
    splits = opt.split or [split for split in SPLITS if (folder / f"{split}_{ending}").exists()]
    if not splits:
        raise InputError(f"{folder}: {missing}")
    return splits


def unfinished(opt, folder, splits, is_complete, ending, again):
    """The splits that are still to be made; prints a line for each whose {split}_{ending} is complete.

    is_complete(folder, split) -> bool, not asked with --overwrite, which does the work `again`.
    """
    todo = []
    for split in splits:
        if not opt.overwrite and is_complete(folder, split):
            print(f"{folder / f'{split}_{ending}'}: complete; --overwrite {again} again")
        else:
            todo.append(split)
    return todo
