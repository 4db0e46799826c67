"""The HTTP server: pages, and what they ask for."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from importlib.resources import files
from typing import Any
from urllib.parse import quote, unquote, urlencode

from tornado.httpserver import HTTPServer
from tornado.httputil import split_host_and_port
from tornado.ioloop import PeriodicCallback
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from stepwatch.cli.report.document import templates
from stepwatch.cli.serve.run_list import RunList

log = logging.getLogger("stepwatch")

_LOOK_MILLISECONDS = 2000
_COOKIE = "stepwatch_token"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(runs: RunList, host: str, port: int, token: str | None, started: asyncio.Future[int]) -> None:
    """Serve until cancelled.

    Args:
        runs: what is served.
        host, port: address to listen at; port 0 is any that is free.
        token: what a visitor must show; None on a loopback address.
        started: gets the port.

    Raises:
        OSError: the address is taken, or not one of this machine.
    """
    sockets = bind_sockets(port, host)
    server = HTTPServer(application(runs, token))
    server.add_sockets(sockets)
    looking = PeriodicCallback(lambda: asyncio.to_thread(runs.look), _LOOK_MILLISECONDS)
    await asyncio.to_thread(runs.look)
    looking.start()
    started.set_result(int(sockets[0].getsockname()[1]))
    try:
        await asyncio.Event().wait()
    finally:
        looking.stop()
        server.stop()


def application(runs: RunList, token: str | None) -> Application:
    """The pages."""
    shared = {"runs": runs, "token": token}
    return Application(
        [
            ("/", _File, {**shared, "name": "list.html", "kind": "text/html"}),
            ("/run", _File, {**shared, "name": "run.html", "kind": "text/html"}),
            ("/list.js", _File, {**shared, "name": "list.js", "kind": "text/javascript"}),
            ("/run.js", _File, {**shared, "name": "run.js", "kind": "text/javascript"}),
            ("/style.css", _File, {**shared, "name": "style.css", "kind": "text/css"}),
            ("/api/runs", _Runs, shared),
            ("/api/run", _Run, shared),
            ("/report", _Report, shared),
        ],
        log_function=lambda handler: None,
    )


class _Page(RequestHandler):  # type: ignore[misc]
    def initialize(self, runs: RunList, token: str | None) -> None:
        self.runs = runs
        self.token = token

    def set_default_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        if self.token is None:
            # Another site could have its own name resolve to this machine and read what is served.
            host, _ = split_host_and_port(self.request.host)
            if not is_loopback(host.strip("[]")):
                raise HTTPError(403)
            return
        shown = self.get_query_argument("token", None)
        if shown is not None and hmac.compare_digest(shown.encode(), self.token.encode()):
            self.set_cookie(_COOKIE, quote(self.token, safe=""), httponly=True, samesite="Strict")
            rest = [(name, self.get_query_argument(name)) for name in self.request.query_arguments if name != "token"]
            self.redirect(self.request.path + (f"?{urlencode(rest)}" if rest else ""))
            return
        bearer = self.request.headers.get("Authorization", "").removeprefix("Bearer ")
        known = unquote(self.get_cookie(_COOKIE) or "") or bearer
        if not hmac.compare_digest(known.encode(), self.token.encode()):
            raise HTTPError(401)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        reasons = {401: "open the address that stepwatch serve printed", 403: "this name is not served here"}
        self.finish(f"{status_code} {reasons.get(status_code, self._reason)}\n")


class _File(_Page):
    def initialize(self, runs: RunList, token: str | None, name: str, kind: str) -> None:  # type: ignore[override]
        super().initialize(runs, token)
        self.name, self.kind = name, kind

    def get(self) -> None:
        package = "stepwatch.cli.serve"
        if self.kind == "text/html":
            text = templates(package).get_template(self.name).render()
        else:
            text = files(package).joinpath(self.name).read_text("utf-8")
        if self.name == "style.css":
            text = files("stepwatch.cli.report").joinpath(self.name).read_text("utf-8") + text
        self.set_header("Content-Security-Policy", _POLICY)
        self.set_header("Content-Type", f"{self.kind}; charset=utf-8")
        self.finish(text)


class _Runs(_Page):
    def get(self) -> None:
        self.finish({"root": str(self.runs.root.resolve()), "runs": [row.to_json() for row in self.runs.rows()]})


class _Run(_Page):
    def get(self) -> None:
        row = self.runs.row(self.get_query_argument("run", ""))
        if row is None:
            raise HTTPError(404)
        self.finish(row.to_json())


class _Report(_Page):
    async def get(self) -> None:
        try:
            page = await asyncio.to_thread(self.runs.report, self.get_query_argument("run", ""))
        except (ValueError, OSError) as error:
            self.set_status(500)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{error}\n")
            return
        if page is None:
            raise HTTPError(404)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(page)
