"""Training steps a second, with one process and with several: random data, the code of train.py.

    python tools/throughput.py --processes 2                      # GSMN, batch of 64, one thread for each process
    python tools/throughput.py --processes 4 --model vsrn --embed_size 512 --batch_size 128

torchrun starts the processes on this machine; they exchange data by gloo on CPUs and by NCCL on GPUs.  docs/scaling.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime.start import run

from runtime.commandline import Parser, whole
from tools.measuring import training


def options(argv=None):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--processes", default=2, type=whole(), help="processes to compare with one")
    add("--threads", default=1, type=whole(), help="threads of each process")
    add("--model", default="gsmn", choices=["gsmn", "vsrn"], help="what is trained")
    add("--batch_size", default=64, type=whole(), help="pairs in the whole batch")
    add("--embed_size", default=1024, type=whole(), help="width of the embeddings")
    add("--regions", default=36, type=whole(), help="regions of an image")
    add("--steps", default=5, type=whole(), help="steps that are timed")
    add("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args(argv)


def main(argv=None):
    training.compare(options(argv))


if __name__ == "__main__":
    run(main)
