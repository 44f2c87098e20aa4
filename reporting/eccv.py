"""Metrics that accept more than one right answer, on MSCOCO's 5,000 test images: ECCV Caption, CxC and PMRP.

By the package eccv_caption (arXiv 2204.03359); docs/method.md, section 4.5.
"""

import contextlib
import hashlib
import io
import re
import warnings

import numpy as np
from tqdm import tqdm

from files.arrays import open_array
from files.errors import InputError, optional_package, warn
from files.text import CAPTIONS_PER_IMAGE, read_lines

# of the letters and digits of coco_precomp's testall_caps.txt, a line each: its captions stand in the package's order
PUBLISHED = "ef2c967434bc87b11033a879cd0b81eae5d8a39329a1c46a6f604087eeeb00d4"
PLAUSIBLE = ("pm_image_to_caption.json", "pm_caption_to_image.json")  # PMRP's answers, which the package lacks
PROJECT = "https://github.com/naver-ai/eccv-caption"
FAMILIES = {  # printed in a line each, in percent
    "ECCV Caption mAP@R, R-Precision, R@1": ("eccv_map_at_r", "eccv_rprecision", "eccv_r1"),
    "CxC R@1, R@5, R@10": ("cxc_r1", "cxc_r5", "cxc_r10"),
    "PMRP": ("pmrp",),
}


class Eccv:
    """The scores of one split: check(dataset) before the work, add(result, sims) after it.

    InputError where the package is missing, or COCO's numbers of the captions cannot be known.
    """

    def __init__(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it recommends the package ujson
            self.metrics = optional_package("eccv_caption", "--eccv").Metrics()

    def check(self, dataset):
        """Find COCO's numbers of the captions, and PMRP's answers where their files exist."""
        owner = {caption: images[0] for caption, images in self.metrics.coco_gts["t2i"].items()}
        if len(dataset) != len(owner):
            raise InputError(
                f"--eccv: {dataset.split} has {len(dataset):,} captions, but the scores need all {len(owner):,} of "
                "COCO's 5,000 test images at once; give --split testall"
            )
        self.captions, source = caption_ids(dataset, owner, self.metrics.coco_ids.tolist())
        self.images = image_ids(self.captions, owner, source)
        paths = [dataset.folder / name for name in PLAUSIBLE]
        missing = [path for path in paths if not path.exists()]
        if missing:
            warn(f"{missing[0]}: no such file; PMRP is left out ({PROJECT} has the file)")
            return
        try:
            self.metrics.set_pm_gts(*map(str, paths))
            answers = self.metrics.pm_gts
            if not (set(self.images) >= answers["i2t"].keys() and set(self.captions) >= answers["t2i"].keys()):
                raise ValueError("images or captions of another data set")
        except (OSError, ValueError, AttributeError) as error:
            files = f"{paths[0]} and {paths[1].name}"
            raise InputError(f"{files}: not the package's files ({error}); get them again from {PROJECT}") from None

    def add(self, result, sims):
        """Print the scores of sims["full"][0], images down and captions across, and keep them in result["eccv"]."""
        result["eccv"] = scores = self.scores(self.retrieved(sims["full"][0]))
        for title, names in FAMILIES.items():
            if names[0] in scores:
                ways = (" ".join(f"{100 * scores[name][way]:.1f}" for name in names) for way in ("i2t", "t2i"))
                print("{}: image to text {}, text to image {}".format(title, *ways))

    def retrieved(self, sims):
        """{"i2t": {image: captions, best first}, "t2i": ...} by COCO's numbers, as far as any score looks.

        Equal similarities keep the split's order.
        """
        gts = [self.metrics.eccv_gts, self.metrics.pm_gts]
        sides = {"i2t": (sims, self.images, self.captions), "t2i": (sims.T, self.captions, self.images)}
        found = {"i2t": {}, "t2i": {}}
        for way, (rows, queries, candidates) in sides.items():
            depth = max(10, *(len(answers) for one in gts if one for answers in one[way].values()))
            for query, row in zip(queries, tqdm(rows, f"order, {way}", disable=None, leave=False)):
                best = np.argsort(-row, kind="stable")[:depth].tolist()
                found[way][query] = [candidates[place] for place in best]
        return found

    def scores(self, found):
        """{name: {"i2t": from 0 to 1, "t2i": ...}}, the names being the package's."""
        metrics = self.metrics
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be switched off
            scores = metrics.eccv_metrics(found, "all")
            scores.update({f"cxc_r{k}": metrics.cxc_recalls(found, "all", K=k) for k in (1, 5, 10)})
            if metrics.pm_gts:
                scores["pmrp"] = metrics.pmrp(found, "all")
        return {name: {way: float(value) for way, value in one.items()} for name, one in scores.items()}


def caption_ids(dataset, owner, published):
    """COCO's numbers of a split's captions, and where they are from.

    {split}_cocoids.txt has one a line; pictures have coco_test_ids.npy, of which the data set takes the first five of
    each image; SCAN's testall has the order of the package, `published`.  owner: {caption: image} of all that the
    scores know.
    """
    path = dataset.folder / f"{dataset.split}_cocoids.txt"
    if path.exists():
        lines = read_lines(path)
        for number, line in enumerate(lines, start=1):
            if not re.fullmatch(r"\s*\d{1,18}\s*", line, re.ASCII):
                raise InputError(f"{path}, line {number}: {line[:40]!r} is not one of COCO's numbers")
        return list(map(int, lines)), path
    of_pictures = dataset.folder / "annotations" / "coco_test_ids.npy"
    if of_pictures.exists() and dataset.split.startswith("test"):
        groups = {}
        for caption in open_array(of_pictures).ravel().tolist():
            groups.setdefault(owner.get(caption), []).append(caption)
        return [caption for group in groups.values() for caption in group[:CAPTIONS_PER_IMAGE]], of_pictures
    if dataset.captions is None:
        warn(f"{path.name} and the captions' texts are missing: their order is taken to be SCAN's testall")
    elif hashlib.sha256("\n".join(map(letters, dataset.captions)).encode()).hexdigest() != PUBLISHED:
        raise InputError(
            f"--eccv: the captions of {dataset.split} are not those of SCAN's testall; need {path} with COCO's number "
            "of each caption, one a line (tools/coco_ids.py finds them)"
        )
    return published, "eccv_caption"


def image_ids(captions, owner, source):
    """The image of each five captions; InputError unless they are all of COCO's test captions, five by five."""
    if len(captions) != len(owner):
        raise InputError(f"{source}: {len(captions)} captions; need all {len(owner)} of COCO's test images")
    unseen = set(owner)
    for i, caption in enumerate(captions):
        if caption not in unseen or owner[caption] != owner[captions[i - i % CAPTIONS_PER_IMAGE]]:
            raise InputError(
                f"{source}: caption {i}, from 0, is COCO's {caption}; need each of its test captions once, and five in "
                "a row of one image"
            )
        unseen.remove(caption)
    return [owner[caption] for caption in captions[::CAPTIONS_PER_IMAGE]]


def letters(text):
    """The letters and digits of a text, which tokenizers and spellings of punctuation do not change."""
    return re.sub("[^a-z0-9]", "", text.lower())
