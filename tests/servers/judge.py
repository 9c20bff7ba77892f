"""Alpaca's own specification as the judge of every request and reply

The OpenAPI documents ship in the wheel `alpaca-mcp-server` (MIT); `openapi-core` reads them. A hook on the client
library's session hands it what was really sent and answered.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from openapi_core import Config, OpenAPI
from openapi_core.contrib.requests import RequestsOpenAPIRequest, RequestsOpenAPIResponse
from requests import Response

DECLARED = (200, 204, 207)


@cache
def specification(name: str) -> dict[str, Any]:
    return json.loads(files("alpaca_mcp_server").joinpath("specs", f"{name}-api.json").read_text())


def events_of(content: bytes) -> Any:
    "The events of a stream, also when a client has made a list of them already"
    if content.startswith(b"["):
        return json.loads(content)
    return [json.loads(line[5:]) for line in content.splitlines() if line.startswith(b"data:")]


def api_of(name: str, url: str) -> OpenAPI:
    "A specification that speaks of this server; a stream of events is judged as the list that the specification calls it"
    config = Config(extra_media_type_deserializers={"text/event-stream": events_of})
    return OpenAPI.from_dict(specification(name) | {"servers": [{"url": url}]}, config=config)


class Judge:
    "Raises in the middle of a test when something was not as the specification says"

    def __init__(self, name: str, url: str):
        self.api = api_of(name, url)
        self.seen, self.wrong = 0, list[str]()
        self.fine: set[tuple[object, ...]] = set()  # what was found right once need not be looked at again

    def __call__(self, response: Response, *_: object, **__: object) -> None:
        try:
            self.judge(response)
        except Exception as error:  # said again at the end: the code under test may take it for a broken line
            self.wrong.append(f"{response.request.method} {response.request.path_url}: {error!r}")
            raise

    def judge(self, response: Response) -> None:
        request = RequestsOpenAPIRequest(response.request)
        asked = response.request.method, response.request.url, response.request.body
        if asked not in self.fine:
            self.api.validate_request(request)
            self.fine.add(asked)
        broken = "X-Fault" in response.headers  # a fault has changed the reply on its way
        if response.status_code in DECLARED and not broken:
            answered = asked[0], str(asked[1]).partition("?")[0], response.status_code, response.content
            if answered not in self.fine:
                self.api.validate_response(request, RequestsOpenAPIResponse(response))
                self.fine.add(answered)
        self.seen += 1
