"""The experiments of the paper, one file each: loss, metrics and training recipe, put together from the other parts."""

from perceivers.extras import need

need("train")
need("vision")
