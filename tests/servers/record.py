"""What a program in another process really sent and got, kept at the server, and judged afterwards

The judge is Alpaca's own specification, as in `judge.py`; there a hook on the client's session hands it over, here
there is no client to put a hook on.
"""

from dataclasses import dataclass, field
from urllib.parse import urlencode

from openapi_core import OpenAPI
from openapi_core.testing import MockRequest, MockResponse

from servers.judge import DECLARED, api_of
from servers.wire import Reply, Request, Wire


@dataclass
class Recorder:
    "Stands in front of a server's answers and writes down each request with its reply"

    wire: Wire
    pairs: list[tuple[Request, Reply]] = field(default_factory=list)

    def __post_init__(self) -> None:
        answer = self.wire.answer

        def recorded(request: Request) -> Reply:
            reply = answer(request)
            self.pairs.append((request, reply))
            return reply

        self.wire.answer = recorded

    def asked(self, *paths: str, method: str = "GET") -> list[Request]:
        "The requests whose path ends in one of these"
        return [request for request, _ in self.pairs if request.method == method and request.path.endswith(paths)]

    def judge(self) -> int:  # how many were judged
        "Raise when a request or a reply is not as the specification says"
        hosts = {"trading": "http://trading", "market-data": "http://data"}
        apis = {name: api_of(name, url) for name, url in hosts.items()}
        for request, reply in self.pairs:
            data = request.path.startswith(("/v2/stocks", "/v1/"))
            name = "market-data" if data else "trading"
            judge_pair(apis[name], hosts[name], request, reply)
        return len(self.pairs)


def judge_pair(api: OpenAPI, host: str, request: Request, reply: Reply) -> None:
    "One request and its reply"
    import json

    body = None if request.body is None else json.dumps(request.body).encode()
    headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
    asked = MockRequest(
        host,
        request.method.lower(),
        request.path,
        args=request.query,
        headers=headers,
        data=body,
        content_type="application/json",
    )
    try:
        api.validate_request(asked)
        if reply.status in DECLARED:
            kind = reply.headers.get("Content-Type", "application/json")
            api.validate_response(asked, MockResponse(reply.content(), status_code=reply.status, content_type=kind))
    except Exception as error:
        where = f"{request.method} {request.path}?{urlencode(request.query)}"
        raise AssertionError(f"{where} -> {reply.status}: {error!r} {error.__cause__!r}") from error
