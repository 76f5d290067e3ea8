"""A real HTTP server on loopback that speaks both judge APIs, well or badly, as a test asks it to.

A behaviour is a function of the server and the request's JSON that returns (status, headers, body bytes), or None for
"the connection is dropped". `script` holds the behaviours of the next requests; after them comes `otherwise`.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JSON = {"Content-Type": "application/json"}
USAGE = (200, 50)  # tokens read and written that the server bills


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.otherwise, self.requests = [], says(verdict("A")), []
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that give up break the pipe; that is what some tests are about

    def next_behaviour(self, request):
        with self.lock:
            self.requests.append(request)
            return self.script.pop(0) if self.script else self.otherwise


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = {"path": self.path, "headers": dict(self.headers.items()), "body": body}
        answer = self.server.next_behaviour(request)(self.server, request)
        if answer is None:
            self.close_connection = True
            return
        status, headers, content = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def judge_server():
    server = JudgeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def verdict(winner, reason="because"):
    return json.dumps({"reason": reason, "winner": winner})


def completion(path, text, stop="whole", usage=USAGE):
    """The body of a good response of either API."""
    if path.endswith("/chat/completions"):
        refusal = "I cannot help with that." if stop == "refused" else None
        finish = {"whole": "stop", "cut": "length", "refused": "stop", "filtered": "content_filter"}[stop]
        message = {"role": "assistant", "content": None if refusal else text, "refusal": refusal}
        spent = usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        choice = {"index": 0, "finish_reason": finish, "message": message}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": spent}
    finish = {"whole": "end_turn", "cut": "max_tokens", "refused": "refusal", "filtered": "refusal"}[stop]
    blocks = [{"type": "thinking", "thinking": "A? B?", "signature": "s"}, {"type": "text", "text": text}]
    spent = usage and {"input_tokens": usage[0], "output_tokens": usage[1]}
    head = {"id": "1", "type": "message", "role": "assistant", "model": "m"}
    return {**head, "content": blocks, "stop_reason": finish, "stop_sequence": None, "usage": spent}


def says(text, stop="whole", usage=USAGE):
    return lambda server, request: sends(completion(request["path"], text, stop, usage))


def sends(body, status=200, **headers):
    return status, {**JSON, **headers}, json.dumps(body).encode()


def fails(status, message="no", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    error = {"type": "error", "error": {"type": "some_error", "message": message}}
    return lambda server, request: sends(error, status, **named)


def raw(content, kind="application/json", **headers):
    return lambda server, request: (200, {"Content-Type": kind, **headers}, content)


def hangs(server, request):
    """Says nothing until the test is over."""
    server.released.wait()


def drops(server, request):
    """Closes the connection without a word."""


def breaks_off(server, request):
    """Promises more bytes than it sends."""
    content = json.dumps(completion(request["path"], verdict("A"))).encode()
    return 200, {**JSON, "Content-Length": str(len(content) + 100)}, content


def unstructured_only(server, request):
    """Knows no structured output: refuses it, as `transformers serve` does, and else answers."""
    if "response_format" in request["body"] or "output_config" in request["body"]:
        return fails(422, "Unexpected fields in the request: response_format")(server, request)
    return says(f"```json\n{verdict('B')}\n```")(server, request)
