"""The command `serve`."""

from pathlib import Path
from typing import Annotated

from perceivers.checks import Count, Range
from perceivers.command import Device

Positive = Annotated[float, Range(above=0)]


def serve(
    model: Annotated[str | None, "a saved model, in any format; by default the package's model of optical flow"] = None,
    *,
    host: Annotated[str, "address to listen at; 0.0.0.0 for all of this machine"] = "127.0.0.1",
    port: Annotated[int, Range(least=0, most=65535), "port to listen at; 0 for any that is free"] = 8000,
    max_batch: Annotated[Count, "largest number of requests computed at once"] = 8,
    max_queue: Annotated[Count, "largest number of requests accepted at once; others are refused"] = 64,
    max_size: Annotated[Positive, "largest request in megabytes"] = 16.0,
    timeout: Annotated[Positive, "seconds after which a request is given up"] = 30.0,
    device: Device = None,
) -> None:
    """Serves a model: a JSON API, and a page for a browser."""
    from perceivers.extras import require_extra

    require_extra("serve")
    from perceivers.serving.app import Limits
    from perceivers.serving.server import run_server

    limits = Limits(max_batch, max_queue, round(max_size * 1e6), timeout)
    run_server(None if model is None else Path(model), host, port, limits, device)
