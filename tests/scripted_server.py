"""An OpenAI-compatible server whose answers a test scripts, and requests to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from capo_fast.config.schema import EndpointConfig
from capo_fast.engine.base import EngineError, run_requests, stream_requests
from capo_fast.engine.endpoint import EndpointCritic
from capo_fast.records import Request

ROUTES = {"/v1/models", "/v1/chat/completions"}


def chat(text="Judgment: Yes", finish="stop", prompt=10, answer=5, **message):
    """A chat completion response."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "prompt_tokens_details": {"cached_tokens": 4}}
    return 200, {"choices": [choice], "usage": usage}


def refused(code, message="no"):
    return code, {"error": {"message": message, "code": code}}


class Scripted(ThreadingHTTPServer):
    """Answers each chat completion request with `respond(body)`: (status, JSON or text[, headers])."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.respond, self.models = lambda body: chat(), (200, {"data": [{"id": "critic"}]})
        self.bodies, self.keys, self.headers = [], [], []
        self.pause_s = 0.0  # between two bytes of an answer
        self.endless = False  # repeats the body of an answer for ever
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Ignores disconnected clients, which tests cause."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(*self.server.models)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        assert self.path in ROUTES
        self.reply(*self.server.respond(body))

    def reply(self, code, payload, headers=()):
        self.server.headers.append(dict(self.headers))
        data = payload if isinstance(payload, bytes) else payload.encode() if isinstance(payload, str) else None
        data = json.dumps(payload).encode() if data is None else data
        self.send_response(code)
        for name, value in {"content-length": len(data), "connection": "close", **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        while self.server.endless:
            self.wfile.write(data)
        for part in [data[i : i + 1] for i in range(len(data))] if self.server.pause_s else [data]:
            self.wfile.write(part)
            time.sleep(self.server.pause_s)

    def log_message(self, *args):
        pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def critic_at(url, budget_left=None, counted_for=None, **config):
    critic = EndpointCritic(EndpointConfig(url=url, **{"retries": 0} | config), budget_left, counted_for=counted_for)
    try:
        yield critic
    finally:
        critic.close()


def request(name="c", message="1+1\n<step_0>1+1=2</step_0>", seed=2**62 + 5, **rest):
    values = {"temperature": 0.5, "top_p": 0.9, "top_k": -1, "max_tokens": 30} | rest
    return Request(name, (), seed, **values, message=message)


def query(critic, *requests):
    return run_requests(critic, requests or [request()])


def query_until_failure(critic, count, match):
    """The answers received before the failure."""
    answers = []
    with pytest.raises(EngineError, match=match):
        for completion in stream_requests(critic, [request(str(i)) for i in range(count)]):
            answers.append(completion)
    return answers


def in_turn(*replies):
    """A script: these replies in order, then the last one repeatedly."""
    left = list(replies)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


TOO_LONG = {
    "vllm": (400, "This model's maximum context length is 256 tokens. However, you requested 400 tokens."),
    "llama.cpp": (400, "the request exceeds the available context size, try increasing it"),
    "sglang": (400, "The input (400 tokens) is longer than the model's context length (256 tokens)."),
    "tgi": (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 256."),
    "hosted": (400, "Your input exceeds the context window of this model."),
}
