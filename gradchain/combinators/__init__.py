"""Links that hold links, or hold the chain."""

from gradchain.combinators.accumulate import accumulate
from gradchain.combinators.amp_scale import amp_scale
from gradchain.combinators.freeze import freeze
from gradchain.combinators.guard import guard
from gradchain.combinators.masked import masked
from gradchain.combinators.partition import partition, rest
from gradchain.combinators.skip_nonfinite import skip_nonfinite
from gradchain.combinators.switch import switch
from gradchain.combinators.when import when

__all__ = [
    "accumulate", "amp_scale", "freeze", "guard", "masked", "partition", "rest", "skip_nonfinite", "switch", "when",
]  # fmt: skip
