"""Runs a server until it is stopped."""

import errno
import math
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from perceivers import plugins
from perceivers.errors import PerceiversError
from perceivers.serving.app import Limits, create_app
from perceivers.serving.service import Service, open_service


def run_server(source: Path | None, host: str, port: int, limits: Limits, device: str | None) -> None:
    """Serves a model until SIGTERM or Ctrl-C; requests that were accepted before are answered.

    Args:
        source: the model, as `perceivers.load` takes it; by default the bundled one of optical flow.
        host: address to listen at.
        port: port to listen at; 0 for any that is free.
        limits: what is accepted.
        device: as in `open_service`.

    Raises:
        PerceiversError: the port is in use, or as in `open_service`.
    """
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started it to ignore this signal
    listener = listen(host, port)  # before the model loads, which takes longer
    with listener:
        service = open_service(find_bundled_model() if source is None else source, device)
        app = create_app(service, "the bundled model" if source is None else str(source), limits)
        config = uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.timeout),
        )
        address = f"[{host}]" if ":" in host else host
        print(f"{service.title}: http://{address}:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def find_bundled_model() -> Path:
    """Returns the folder of the model that comes with the package."""
    bundled = plugins.find_class("services", "flow", Service).bundled  # type: ignore[type-abstract]
    assert bundled is not None
    return bundled


def leave(_number: int, _frame: FrameType | None) -> None:
    """Ends the program on SIGTERM: while the model loads, and once the server has stopped."""
    sys.exit(0)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address, or raises a PerceiversError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:  # also of a host that is unknown
        if error.errno == errno.EADDRINUSE:
            raise PerceiversError(f"port {port} of {host} is in use: give another --port, or 0 for any.") from error
        raise PerceiversError(f"the server cannot listen at {host}, port {port}: {error.strerror}.") from error
