"""As much of W&B's server as saving a dashboard asks for, on this machine."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_DATE = "2026-01-01T00:00:00"
_VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


def _answer(query: str, variables: dict[str, Any]) -> dict[str, Any]:
    if "upsertView" in query:
        view = {"id": "Vmlldzox", "name": "nw-abc-v", "type": "runs", "displayName": variables["displayName"],
                "description": "", "project": {"id": "p", "name": "p", "entityName": "me"}, "createdAt": _DATE,
                "updatedAt": _DATE, "spec": variables["spec"]}  # fmt: skip
        return {"upsertView": {"view": view, "inserted": True}}
    if "internalId" in query:
        return {"project": {"internalId": "123"}}
    return {"viewer": _VIEWER, "serverInfo": None} if "viewer" in query.lower() else {}


@contextlib.contextmanager
def wandb_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve on a free port.

    Yields:
        The address, and the variables of every dashboard that is saved.
    """
    saved: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = json.loads(body) if self.path == "/graphql" else {}
            query, variables = asked.get("query", ""), asked.get("variables") or {}
            if "upsertView" in query:
                saved.append(variables)
            answer = json.dumps({"data": _answer(query, variables)}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", saved
    finally:
        server.shutdown()
        server.server_close()
