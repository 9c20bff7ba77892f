"""HTTP on 127.0.0.1 for the local brokers: fast, stateful, and able to fail at the socket in every way a line can"""

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    "What a client asked"

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any  # parsed JSON, or None


@dataclass(frozen=True)
class Reply:
    "What is answered"

    status: int = 200
    body: Any = None  # JSON-ready; bytes are sent as they are; None = empty
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Fault:
    "What goes wrong with one request"

    matches: Callable[[Request], bool]
    action: str  # drop, hang, reset, close, truncate, drip, reply
    after: bool = True  # the request is carried out first
    reply: Reply | None = None  # for action reply, or instead of the real one
    times: int = 1  # how often
    seconds: float = 0.05  # of a hang, and between two drips
    change: Callable[[Any], Any] | None = None  # of the real reply's body
    now: Callable[[], object] | None = None  # done when the request arrives, before it is carried out
    then: Callable[[], object] | None = None  # done when it was carried out, before the answer leaves


class Wire:
    "A server whose answers come from `answer`, and whose faults are scripted"

    def __init__(self, answer: Callable[[Request], Reply]):
        self.answer, self.faults, self.log = answer, list[Fault](), list[Request]()
        self.lock = threading.RLock()
        self.clock: Callable[[], float] | None = None  # of the Date header; seconds since 1970
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version, wbufsize = "HTTP/1.1", -1

            def handle_one(self) -> None:
                parts = urlsplit(self.path)
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length) if length else b""
                query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
                try:
                    body = json.loads(text) if text else None
                except ValueError:
                    body = None
                request = Request(self.command, parts.path, query, dict(self.headers), body)
                with wire.lock:
                    wire.log.append(request)
                    fault = wire.due(request)
                    if fault and fault.now:
                        fault.now()
                    reply = wire.answer(request) if fault is None or fault.after else Reply(500)
                wire.respond(self, reply, fault)

            do_GET = do_POST = do_DELETE = do_PATCH = handle_one

            def log_message(self, *_: object) -> None: ...

            def date_time_string(self, timestamp: float | None = None) -> str:
                at = wire.clock() if wire.clock else timestamp
                return super().date_time_string(at)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients die here on purpose
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.open = True
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        "Wait for connections without ever waking for nothing: hundreds of these live in one process of tests"
        while self.open:
            self.server.handle_request()

    def due(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.matches(request):
                fault.times -= 1
                return fault
        return None

    def respond(self, handler: BaseHTTPRequestHandler, reply: Reply, fault: Fault | None) -> None:
        action = fault.action if fault else "reply"
        if fault and fault.then:
            fault.then()
        if fault and fault.reply is not None:
            reply = fault.reply
        if fault and fault.change:
            reply = Reply(reply.status, fault.change(reply.body), reply.headers)
        content = reply.content()
        if action in ("drop", "close", "reset", "hang"):
            if action == "hang" and fault:
                time.sleep(fault.seconds)
            if action == "reset":
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
            handler.connection.close() if action == "reset" else handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(reply.status)
        headers = {"Content-Type": "application/json"} | reply.headers | {"Content-Length": str(len(content))}
        if fault:
            headers["X-Fault"] = action
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            if action == "truncate":
                handler.wfile.write(content[: len(content) // 2])
                handler.close_connection = True
            elif action == "drip" and fault:
                for byte in content:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    time.sleep(fault.seconds)
            else:
                handler.wfile.write(content)
            handler.wfile.flush()
        except OSError:
            handler.close_connection = True

    def close(self) -> None:
        self.open = False
        with contextlib.suppress(OSError):  # refuses from now on, and wakes the thread
            self.server.socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):  # where a socket that listens cannot be shut down, a visitor wakes it
            socket.create_connection(self.server.server_address[:2], 1.0).close()
        self.thread.join(5.0)
        self.server.server_close()
