"""Serving layer: batch version ⊕ the epochs after its horizon, over HTTP, with what each answer knows of itself.

    python serving_layer.py --domain learning

Reads    HDFS /data/batch_views/_versions and _served, /data/speed_views, the raw and typed logs; Kafka's end offsets.
         With SERVING_STORE=cassandra versions and epochs come from there, where `engine.materialise` puts them.
Writes   nothing.
Keeps    nothing.
Promises one answer is made of one snapshot; coverage never goes back, except by a recorded rollback; an answer says up to
         which offset it is true (`as_of`), whether anything below is missing, and how old it is.
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
from pathlib import Path
from urllib.parse import parse_qsl

import structlog
from fastapi import FastAPI, Request, Response
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.exceptions import HTTPException

import domains
from engine.domain import DeclarationError
from engine.runtime.notation import BadQuery, encode
from engine.runtime.observe import StartAgain, exit_codes, start_logging
from engine.runtime.settings import Settings, SettingsError, add_flags, environment, from_args
from engine.serving import answers, openapi
from engine.serving.cassandra import SERVING_RETRY_SECONDS, Cassandra
from engine.serving.parameters import Params
from engine.serving.reply import Problem
from engine.serving.service import Service
from engine.storage.hdfs import Hdfs

WEB = Path(__file__).parent / "web"
DRAIN_SECONDS = 10.0


def create_app(service: Service) -> FastAPI:
    """Return the routes; all state is in `service`."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    measured = answers.Measured(service)
    app.middleware("http")(measured.around)
    app.add_exception_handler(Problem, answers.problem)
    app.add_exception_handler(BadQuery, answers.problem)
    app.add_exception_handler(HTTPException, answers.problem)

    @app.get("/v1/views")
    async def views(request: Request) -> Response:
        """Every view: domain, dimensions with types, measures, grain, freshness."""
        answers.none_but(params(request))
        return answers.json_reply(answers.catalogue(service))

    @app.get("/v1/views/{name}")
    async def view(name: str, request: Request) -> Response:
        """Rows of a view: merged, or one side alone."""
        domain, found = service.view(name)
        return await answers.view_rows(service, domain, found, params(request))

    @app.get("/v1/views/{name}/proof")
    async def view_proof(name: str, request: Request) -> Response:
        """The same rows recounted from the raw log, and whether they match."""
        domain, found = service.view(name)
        return await answers.proven(service, domain, found, params(request))

    @app.get("/v1/reports/{name}")
    async def report(name: str, request: Request) -> Response:
        """Rows of a batch-only report."""
        domain, found = service.report(name)
        return await answers.report_rows(service, domain, found, params(request))

    @app.get("/v1/events/{topic}")
    async def events(topic: str, request: Request) -> Response:
        """Typed events, newest first."""
        return await answers.event_rows(service, service.topic(topic), topic, params(request))

    @app.get("/v1/quarantine")
    async def quarantine(request: Request) -> Response:
        """Rows with a problem, newest first, with their raw value."""
        return await answers.quarantine_rows(service, params(request))

    @app.get("/v1/ledger")
    async def ledger(request: Request) -> Response:
        """Per partition: where Kafka, raw log, typed log, batch and speed stand, and whether the counts balance."""
        return answers.json_reply(answers.ledger(service, params(request)))

    @app.get("/health/live")
    async def live() -> Response:
        """The process answers."""
        return answers.json_reply({"status": "live"})

    @app.get("/health/ready")
    async def ready() -> Response:
        """Whether there is something right to say, with reasons."""
        failing, worrying = service.reasons()
        said = {"status": "not ready" if failing else "ready", "reasons": failing, "warnings": worrying}
        return answers.json_reply(said, 503 if failing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(measured.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json")
    async def described_json() -> Response:
        """This interface, with one path per view."""
        return Response(encode(openapi.document(service.domains)), media_type="application/json")

    @app.get("/docs")
    async def docs() -> Response:
        """The same as a page; needs no network."""
        return Response(openapi.page(service.domains), media_type="text/html; charset=utf-8")

    @app.get("/")
    async def board() -> Response:
        """The dashboard."""
        return answers.file_reply(WEB, "index.html")

    @app.get("/static/{path:path}")
    async def static(path: str) -> Response:
        """Files of the dashboard."""
        return answers.file_reply(WEB, path)

    return app


def params(request: Request) -> Params:
    """Return the query's parameters in order. Raises BadQuery for what is not UTF-8, or far too many."""
    try:
        text = request.scope["query_string"].decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=2000)
    except ValueError:
        raise BadQuery("query", "the query string must be percent-encoded UTF-8 with at most 2000 fields") from None


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
