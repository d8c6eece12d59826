"""The web application: an endpoint for predictions with limits, and others that describe the model and the server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from perceivers.errors import PerceiversError, printable, shorten
from perceivers.serving.batching import Batcher
from perceivers.serving.metrics import Metrics
from perceivers.serving.service import Message, Service

PAGE = Path(__file__).with_name("page.html")

READERS = 2
"""Threads that read requests: they decode pictures."""

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; media-src data:; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of the page: it loads nothing from elsewhere."""

log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """What a server accepts.

    Attributes:
        max_batch: largest number of requests that are computed at once.
        max_queue: largest number of requests without an answer.
        max_size: bytes of the largest request.
        timeout: seconds that a request may take.
    """

    max_batch: int = 8
    max_queue: int = 64
    max_size: int = 16_000_000
    timeout: float = 30.0


class Problem(Message):
    """Why there is no answer."""

    error: str


class RefusalError(Exception):
    """The reason why a request has no answer, and its status."""

    def __init__(self, status: int, reason: object) -> None:
        super().__init__(shorten(printable(str(reason)), 1000))
        self.status = status


class Predictions:
    """Answers requests for predictions within limits.

    Args:
        service: the model.
        limits: what is accepted.
    """

    def __init__(self, service: Service, limits: Limits) -> None:
        self.service, self.limits, self.metrics = service, limits, Metrics()
        self.max_batch = min(limits.max_batch, service.max_batch or limits.max_batch)

    def open(self) -> None:
        """Starts the threads."""
        self.batcher = Batcher(self.compute, self.max_batch)
        self.readers = ThreadPoolExecutor(READERS, "read")

    def close(self) -> None:
        """Ends the threads, after what they are at."""
        self.readers.shutdown(cancel_futures=True)
        self.batcher.close()

    def compute(self, items: Sequence[Any]) -> Sequence[Message]:
        """Computes a batch, and counts it."""
        start = perf_counter()
        answers = self.service.compute(items)
        self.metrics.observe_batch(len(items), perf_counter() - start)
        return answers

    async def respond(self, request: Request) -> Response:
        """Returns the response to a request, whatever happens."""
        start = perf_counter()
        self.metrics.waiting += 1
        try:
            answer: Message = await self.answer(request)
            status = 200
        except RefusalError as refusal:
            answer, status = Problem(error=str(refusal)), refusal.status
        except ClientDisconnect:
            answer, status = Problem(error="the connection was closed."), 499  # nobody reads it
        except Exception:
            log.exception("A request failed by an error of the program.")
            answer, status = Problem(error="the server failed at this request; its log says why."), 500
        finally:
            self.metrics.waiting -= 1
        self.metrics.observe_request(status, perf_counter() - start)
        # what a refused client has yet to send is not read
        headers = {"Connection": "close"} if status in (408, 413, 415, 503) else {}
        if status == 503:
            headers["Retry-After"] = "1"
        return Response(answer.model_dump_json(), status, headers, "application/json")

    async def answer(self, request: Request) -> Message:
        """Returns the answer to a request, or raises a RefusalError."""
        if self.metrics.waiting > self.limits.max_queue:
            raise RefusalError(503, f"{self.limits.max_queue} requests are waiting already: try again later.")
        stage = 408, "the request did not arrive"
        try:
            async with asyncio.timeout(self.limits.timeout):
                body = await self.read_body(request)
                stage = 504, "there was no answer"
                item = await asyncio.get_running_loop().run_in_executor(self.readers, self.parse, body)
                return await self.wait(request, item)
        except TimeoutError as error:
            status, what = stage
            raise RefusalError(status, f"{what} within {self.limits.timeout:g} seconds.") from error

    async def read_body(self, request: Request) -> bytes:
        """Returns the body of a request; one that is too large is not read to its end."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusalError(415, "the request must be JSON, with the header Content-Type: application/json.")
        too_large = RefusalError(413, f"the request is larger than {self.limits.max_size:,} bytes: send a smaller one.")
        if (
            int(request.headers.get("content-length", 0)) > self.limits.max_size
        ):  # the server checks that it is a number
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.limits.max_size:
                raise too_large
        return bytes(body)

    def parse(self, body: bytes) -> Any:
        """Returns what the service computes of the body of a request."""
        try:
            return self.service.read(self.service.request.model_validate_json(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            if first["type"] == "json_invalid":
                raise RefusalError(
                    400, f"the request is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}."
                ) from error
            where = ".".join(map(str, first["loc"])) or "the request"
            raise RefusalError(422, f"{where}: {first['msg']}; /model has the schema of requests.") from error
        except PerceiversError as error:
            raise RefusalError(422, error) from error

    async def wait(self, request: Request, item: Any) -> Message:
        """Returns the answer of the model, unless the client leaves before."""
        answer = asyncio.wrap_future(self.batcher.submit(item))
        gone = asyncio.ensure_future(request.receive())  # after the body, the next message is that the client has left
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            found: Message = await answer
            return found
        except PerceiversError as error:
            raise RefusalError(422, error) from error
        finally:
            answer.cancel()
            gone.cancel()


def create_app(service: Service, name: str, limits: Limits = Limits()) -> FastAPI:  # noqa: B008
    """Returns the web application that serves a model.

    Args:
        service: the model.
        name: its name for those who use the server.
        limits: what is accepted.
    """
    predictions = Predictions(service, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        predictions.open()
        yield
        await asyncio.to_thread(predictions.close)

    app = FastAPI(
        title=f"perceivers: {service.title}",
        version=version("perceivers"),
        description="Errors have a status of 4xx or 5xx and a JSON object whose field `error` is one sentence.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    problems = {
        400: "The request is not JSON.",
        408: "The request did not arrive in time.",
        413: "The request is too large.",
        415: "The request has another type than application/json.",
        422: "A field is missing, of the wrong type, or cannot be read.",
        500: "The server failed.",
        503: "Too many requests are waiting.",
        504: "There was no answer in time.",
    }
    responses: dict[int | str, dict[str, Any]] = {
        200: {"model": service.answer},
        **{status: {"model": Problem, "description": text} for status, text in problems.items()},
    }
    schema = service.request.model_json_schema()
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    @app.post("/predict", responses=responses, openapi_extra={"requestBody": body})
    async def predict(request: Request) -> Response:
        """Answers a request by the model; requests that come at the same time are computed together."""
        return await predictions.respond(request)

    @app.get("/model")
    def describe_model() -> dict[str, Any]:
        """Returns what the model is, and the schemas of requests and answers."""
        parameters = list(service.model.parameters())
        return {
            "name": name,
            "task": service.task,
            "title": service.title,
            "class": type(service.model).__name__,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "device": str(parameters[0].device),
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "classes": service.classes,
            "limits": limits._replace(max_batch=predictions.max_batch)._asdict(),
            "request": schema,
            "answer": service.answer.model_json_schema(mode="serialization"),
            "has_example": service.example() is not None,
        }

    @app.get("/example", responses={200: {"model": service.request}, 404: {"model": Problem}})
    def give_example() -> Response:
        """Returns a request to try, if the model has one."""
        example = service.example()
        if example is None:
            raise HTTPException(404, "this model has no example.")
        return Response(example.model_dump_json(by_alias=True, exclude_unset=True), media_type="application/json")

    @app.get("/health")
    def check_health() -> JSONResponse:
        """Returns whether the server can answer: 200, or 503 if not."""
        works = predictions.batcher.thread.is_alive()
        content = {"status": "ok" if works else "failed", "waiting": predictions.metrics.waiting}
        return JSONResponse(content, 200 if works else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    def give_metrics() -> PlainTextResponse:
        """Returns counts of requests, seconds and batch sizes in the text format of Prometheus."""
        return PlainTextResponse(predictions.metrics.format(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def give_page() -> HTMLResponse:
        """Returns the page for a browser."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=SECURITY)

    @app.exception_handler(HTTPException)
    def refuse(_: Request, error: HTTPException) -> JSONResponse:
        """Returns other errors, such as an unknown path, in the same form."""
        sentence = error.detail if error.detail.endswith(".") else f"{error.detail}; /openapi.json lists the endpoints."
        return JSONResponse({"error": sentence}, error.status_code)

    return app
