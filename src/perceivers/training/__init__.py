"""Training runs, whatever is trained."""

from perceivers.extras import require_extra

require_extra("train")
