"""What the processes of `test_scale.py` run: each way, with ZeRO's exchange in several buckets."""

from unittest import mock

from benchmarks import scale_ranks
from benchmarks.scale_model import WAYS, transformer
from gradchain.updater import zero

LAYOUT = transformer(2, 9)  # rows that two ranks cannot share out alike
BUCKET = 1500  # bytes: less than a matrix, more than some vectors
NAMES = ("clip, AdamW", "Lion")


def on_a_rank():
    with mock.patch.object(zero, "BUCKET", BUCKET):
        return {
            (name, way): scale_ranks.run(way, LAYOUT, scale_ranks.CHAINS[name](), 1) for name in NAMES for way in WAYS
        }
