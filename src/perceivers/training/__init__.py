"""Training runs, whatever is trained."""

from perceivers.extras import need

need("train")
