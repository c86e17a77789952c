"""Serving layer: batch version ⊕ the epochs after its horizon, over HTTP, with what each answer knows of itself.

    python serving_layer.py --domain learning

Reads    HDFS /data/batch_views/_versions and _served, /data/speed_views, the raw and typed logs; Kafka's end offsets.
         With SERVING_STORE=cassandra versions and epochs come from there, where `engine.materialise` puts them.
Writes   nothing.
Keeps    nothing.
Promises one answer is made of one snapshot; coverage never goes back, except by a recorded rollback; an answer says up
         to which offset it is true (`as_of`), whether anything below is missing, and how old it is.
Shows    the dashboard, the interface, /metrics and /health on SERVING_PORT.
Exit     0 after SIGTERM (requests in flight get 10 s); 2 a wrong setting or a busy port; 75 start again.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

import domains
from engine.domain import DeclarationError
from engine.runtime.notation import BadQuery, encode
from engine.runtime.observe import StartAgain, exit_codes, start_logging
from engine.runtime.settings import Settings, SettingsError, add_flags, environment, from_args
from engine.serving import answers, openapi
from engine.serving.cassandra import SERVING_RETRY_SECONDS, Cassandra
from engine.serving.openapi import Route
from engine.serving.reply import MEDIA, HeadAsGet, Problem
from engine.serving.service import Service
from engine.storage.hdfs import Hdfs

WEB = Path(__file__).parent / "web"
DRAIN_SECONDS = 10.0
ALREADY_SMALL = (*DEFAULT_EXCLUDED_CONTENT_TYPES, MEDIA["parquet"])


async def described(service: Service, request: Request) -> Response:
    """This interface, with one path per view."""
    return Response(encode(openapi.document(ROUTES, service.domains)), media_type="application/json")


async def metrics(service: Service, request: Request) -> Response:
    """For Prometheus."""
    measured: answers.Measured = request.app.state.measured
    return Response(measured.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def board(service: Service, request: Request) -> Response:
    """The dashboard."""
    return answers.file_reply(WEB, "index.html")


async def docs(service: Service, request: Request) -> Response:
    """The description as a page on which each call can be tried."""
    return answers.file_reply(WEB, "docs.html")


async def static(service: Service, request: Request) -> Response:
    """Files of the two pages."""
    return answers.file_reply(WEB, request.path_params["path"])


# All there is: what is served, what /openapi.json says of it, and the paths that a 404 names.
ROUTES = (
    Route("/v1/views", answers.catalogue, openapi.catalogue),
    Route("/v1/views/{name}", answers.view_rows, openapi.views),
    Route("/v1/views/{name}/proof", answers.proven, openapi.proofs),
    Route("/v1/reports/{name}", answers.report_rows, openapi.reports),
    Route("/v1/events/{name}", answers.event_rows, openapi.events),
    Route("/v1/quarantine", answers.quarantine_rows, openapi.quarantine),
    Route("/v1/ledger", answers.ledger, openapi.ledger),
    Route("/health/live", answers.live, openapi.live),
    Route("/health/ready", answers.ready, openapi.ready),
    Route("/metrics", metrics, openapi.metrics),
    Route("/openapi.json", described, openapi.itself),
    Route("/docs", docs, openapi.page),
    Route("/", board, openapi.page),
    Route("/static/{path:path}", static, None),
)


def create_app(service: Service) -> FastAPI:
    """Return the routes; all state is in `service`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.measured = answers.Measured(service)
    app.add_middleware(GZipMiddleware, compresslevel=4, exclude_content_types=ALREADY_SMALL)
    app.middleware("http")(app.state.measured.around)
    app.add_middleware(HeadAsGet)
    problem = partial(answers.problem, [route.template for route in ROUTES])
    for error in (Problem, BadQuery, HTTPException):
        app.add_exception_handler(error, problem)
    for route in ROUTES:
        app.add_api_route(route.path, _endpoint(route.answer, service), methods=["GET"])
    return app


def _endpoint(answer: Any, service: Service) -> Any:
    async def endpoint(request: Request) -> Response:
        answered: Response = await answer(service, request)
        return answered

    return endpoint


async def serve(app: FastAPI, settings: Settings, service: Service) -> None:
    """Serve until SIGTERM or SIGINT, then let requests in flight finish.

    Raises:
        StartAgain: the server ended by itself.
    """
    host, port = settings.serving_host, settings.serving_port
    server = Server(app, host, port, interface=Interfaces.ASGI, websockets=False, log_level=LogLevels.error)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    service.start()
    serving = asyncio.create_task(server.serve())
    await asyncio.wait((serving, stopped := asyncio.create_task(stop.wait())), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    server.stop()  # type: ignore[no-untyped-call]
    await asyncio.wait((serving,), timeout=DRAIN_SECONDS)
    service.stop()
    if not stop.is_set():
        reason = str(serving.exception()).splitlines()[0] if serving.done() else "it does not say why"
        raise StartAgain(f"the server on {host}:{port} ended by itself: {reason}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, {"domain": "--domain", "serving_host": "--host", "serving_port": "--port"})
    parser.add_argument("--allow-remote", action="store_true", help="listen on an address that other machines reach")
    with exit_codes((SettingsError, DeclarationError), (), (StartAgain,)):
        args = parser.parse_args(argv)
        settings = from_args(args)
        chosen = domains.named(settings.domain, environment())
        host, port = settings.serving_host, settings.serving_port
        if refusal := listen_refusal(host, port, args.allow_remote):
            raise SettingsError(refusal)
        start_logging(settings)
        store = Cassandra.of(settings, SERVING_RETRY_SECONDS) if settings.serving_store == "cassandra" else None
        service = Service(settings, chosen, Hdfs(settings.hdfs_url, settings.hadoop_user_name), store=store)
        structlog.get_logger("serving_layer").info(
            "serving", url=f"http://{host}:{port}/", domains=[d.name for d in chosen]
        )
        asyncio.run(serve(create_app(service), settings, service))


def listen_refusal(host: str, port: int, allow_remote: bool) -> str | None:
    """Return why we do not listen there: a busy port, or an address that is not only ours."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not ipaddress.ip_address(address[4][0]).is_loopback and not allow_remote:
            return f"SERVING_HOST={host!r}: other machines could reach it and there is no login; add --allow-remote if that is wanted"
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
    except OSError as error:
        return f"SERVING_PORT={port} on {host}: cannot listen ({error.strerror or error}); stop what is there or choose another --port"
    return None


if __name__ == "__main__":
    code: str | int | None = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))  # a thread may still wait for HDFS; nothing of ours is left to write
