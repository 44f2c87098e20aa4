"""Find COCO's annotation ids of a split's captions, which testall.py --eccv needs where the order is not SCAN's.

    python tools/coco_ids.py annotations/captions_val2014.json --data_name coco_precomp --split testall

Compares letters and digits with those of COCO's annotations, five captions at a time, and writes
{split}_cocoids.txt beside the captions, a number a line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

from collections import defaultdict

from tqdm import tqdm

from files.annotations import captions_by_number, read_coco
from files.errors import InputError
from files.text import CAPTIONS_PER_IMAGE, data_folder, read_captions
from files.writing import atomic_write, check_writable
from reporting.eccv import letters
from runtime.commandline import Parser
from tools.own_data.shared import add_data_flags


def numbers_of(five, known):
    """The numbers of five captions of one image; None where no image has them all, or more than one has."""
    keys = [letters(text) for text in five]
    images = set.intersection(*(set(known.get(key, ())) for key in keys))
    fitting = [image for image in images if all(len(known[key][image]) >= keys.count(key) for key in keys)]
    if len(fitting) != 1:
        return None
    left = {key: iter(known[key][fitting[0]]) for key in keys}  # a caption given twice has two numbers
    return [next(left[key]) for key in keys]


def main(arguments=None):
    parser = Parser(description=__doc__)
    parser.add_argument("annotations", nargs="+", type=Path, help="COCO's captions_*.json")
    add_data_flags(parser)
    parser.add_argument("--split", default="testall", help="split whose {split}_caps.txt is read")
    flags = parser.parse_args(arguments)
    folder = data_folder(flags.data_path, flags.data_name)
    source, out = (folder / f"{flags.split}_{name}.txt" for name in ("caps", "cocoids"))
    check_writable(out)
    captions, numbers = read_captions(source), []
    known = defaultdict(lambda: defaultdict(list))  # {letters of a caption: {image: numbers of its captions}}
    for path in flags.annotations:
        for number, (picture, caption) in sorted(captions_by_number(read_coco(path), path).items()):
            known[letters(caption.text)][picture.name].append(number)
    for i in tqdm(range(0, len(captions), CAPTIONS_PER_IMAGE), desc=flags.split, disable=None, leave=False):
        found = numbers_of(captions[i : i + CAPTIONS_PER_IMAGE], known)
        if not found:
            raise InputError(
                f"{source}, lines {i + 1} to {i + CAPTIONS_PER_IMAGE}: not the captions of one image in "
                f"{', '.join(map(str, flags.annotations))}; give the files these captions are from"
            )
        numbers += found
    atomic_write(out, lambda file: file.write("".join(f"{number}\n" for number in numbers).encode()))
    print(f"{out}: {len(numbers)} captions")


if __name__ == "__main__":
    run(main)
