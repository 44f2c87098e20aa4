"""Put the images of a split into a FAISS index, so that tools/search.py need not compare a sentence with each.

    python tools/index.py --model_path VSRN.pth.tar --split test --out test.index
    python tools/search.py --index test.index --query "two dogs run on grass"

VSRN gives an image one vector, and its similarity with a sentence is their inner product.  'exact' compares the
sentence with every image; 'ivf' groups the vectors and looks into the nearest groups, 'hnsw' walks a graph of
neighbours: both are faster in large collections and may miss some images.  Writes FAISS's own file and a JSON beside
it (test.index.json) with model, split, checksums, names and first captions of the images.  Needs faiss
(pip install faiss-cpu).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.start import run

import data
import evaluation
from checkpoints.evaluation_options import add_override_flags, overrides_of
from files.writing import check_writable
from runtime.commandline import Parser
from tools.searching.collection import embed_images, facts_of, need_vectors
from tools.searching.faiss_index import INDEX_KINDS, build_index, facts_file, need_faiss, write_index


def index_options(arguments=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--model_path", required=True, help="checkpoint of VSRN")
    add_override_flags(parser)
    add("--kind", default="exact", choices=INDEX_KINDS, help="how the nearest images are found (default: exact)")
    add("--out", metavar="FILE", help="index file to write, FILE.json beside it (default: {split}.index)")
    return parser.parse_args(arguments)


def main(arguments=None):
    flags = index_options(arguments)
    out = flags.out or f"{flags.split}.index"
    need_faiss()
    for file in (out, facts_file(out)):
        check_writable(file)
    model, opt, vocab = evaluation.load_model(flags.model_path, **overrides_of(flags))
    need_vectors(opt, flags.model_path)
    dataset = data.open_split(flags.split, opt.data_name, vocab, opt)
    facts = facts_of(flags.model_path, opt, dataset)
    vectors = embed_images(model, dataset).numpy()
    write_index(out, build_index(vectors, flags.kind), facts)
    size = Path(out).stat().st_size / 1e6
    print(f"{out}: {len(vectors)} images, {vectors.shape[1]} numbers each, {flags.kind}, {size:.3g} MB")


if __name__ == "__main__":
    run(main)
