"""stomp.py over WebSocket and TCP, httpx-sse and sseclient-py against a pod of the conformance mode. Run by .ci/foreign."""

import json
import os
import queue
import sys
import traceback

import httpx
import httpx_sse
import sseclient
import stomp
import stomp.adapter.ws

BASE, TCP = sys.argv[1], sys.argv[2].rsplit(":", 1)
WEB = BASE.removeprefix("http://").rsplit(":", 1)
PATIENCE = 10


class Inbox(stomp.ConnectionListener):
    """Frames in queues; stomp.py calls from a thread of its own."""

    def __init__(self):
        self.messages, self.receipts, self.errors = queue.Queue(), queue.Queue(), queue.Queue()

    def on_message(self, frame):
        self.messages.put(frame)

    def on_receipt(self, frame):
        self.receipts.put(frame)

    def on_error(self, frame):
        self.errors.put(frame)


def sessions():
    """A connection of each kind and version."""
    tcp = [(TCP[0], int(TCP[1]))]
    yield "tcp 1.0", stomp.StompConnection10(tcp)
    yield "tcp 1.1", stomp.StompConnection11(tcp, heartbeats=(1000, 1000))
    yield "tcp 1.2", stomp.StompConnection12(tcp, heartbeats=(1000, 1000))
    web = [(WEB[0], int(WEB[1]))]
    for name, binary in (("websocket text", False), ("websocket binary", True)):
        yield name, stomp.adapter.ws.WSStompConnection(web, ws_path="/stomp", binary_mode=binary)


def stomp_session(name, connection):
    """Subscribes, sends, acknowledges, commits, aborts, and leaves."""
    inbox = Inbox()
    connection.set_listener("inbox", inbox)
    connection.connect("guest", "guest", wait=True)
    old = name.endswith("1.0")
    connection.subscribe("/queue/py", id="1", ack="client", headers={"receipt": "s"})
    assert inbox.receipts.get(timeout=PATIENCE).headers["receipt-id"] == "s"
    connection.send("/queue/py", "grüße", headers={"kind": "a:b" if not old else "ab", "receipt": "1"})
    message = inbox.messages.get(timeout=PATIENCE)
    assert message.body == "grüße", message.body
    assert message.headers["kind"] == ("ab" if old else "a:b"), message.headers
    assert inbox.receipts.get(timeout=PATIENCE).headers["receipt-id"] == "1"
    if old:
        connection.ack(message.headers["message-id"])
    elif name.endswith("1.1"):
        connection.ack(message.headers["message-id"], "1")
    else:
        connection.ack(message.headers["ack"])
    aborted = connection.begin()
    connection.send("/queue/py", "dropped", transaction=aborted)
    connection.abort(aborted)
    committed = connection.begin()
    connection.send("/queue/py", "kept", transaction=committed)
    connection.commit(committed)
    assert inbox.messages.get(timeout=PATIENCE).body == "kept"
    if old:
        connection.unsubscribe("/queue/py")
    else:
        connection.unsubscribe("1")
    connection.disconnect(receipt="bye")
    assert inbox.receipts.get(timeout=PATIENCE).headers["receipt-id"] == "bye"
    assert inbox.errors.empty(), inbox.errors.get()


def wrong_login():
    connection, inbox = stomp.StompConnection12([(TCP[0], int(TCP[1]))], reconnect_attempts_max=1), Inbox()
    connection.set_listener("inbox", inbox)
    try:
        connection.connect("guest", "wrong", wait=True)
    except stomp.exception.ConnectFailedException:
        pass
    assert inbox.errors.get(timeout=PATIENCE).headers["message"] == "access refused"


def likes(name, events):
    """A snapshot and five likes, each with its id."""
    with httpx.Client(base_url=BASE, timeout=PATIENCE) as http:
        post = http.post("/posts", json={"title": "t"}).json()["id"]
        seen = []
        for event in events(f"{BASE}/posts/{post}/likes"):
            # Blocks without data (retry, comments) are events to some clients.
            if not event.data:
                continue
            seen.append((event.id, json.loads(event.data)["version"]))
            if len(seen) == 6:
                break
            http.post(f"/posts/{post}/likes")
    epoch = seen[0][0].split(".")[0]
    assert seen == [(f"{epoch}.{version}", version) for version in range(6)], seen


def by_httpx_sse(url):
    with httpx.Client(timeout=PATIENCE) as client, httpx_sse.connect_sse(client, "GET", url) as source:
        yield from source.iter_sse()


def by_sseclient(url):
    with httpx.stream("GET", url, headers={"Accept": "text/event-stream"}, timeout=PATIENCE) as response:
        yield from sseclient.SSEClient(response.iter_bytes()).events()


CASES = [(f"stomp.py: {name}", lambda n=name, c=connection: stomp_session(n, c)) for name, connection in sessions()]
CASES.append(("stomp.py: wrong login", wrong_login))
CASES.append(("httpx-sse", lambda: likes("httpx-sse", by_httpx_sse)))
CASES.append(("sseclient-py", lambda: likes("sseclient-py", by_sseclient)))

failures = 0
for title, run in CASES:
    try:
        run()
        print(f"{title}: ok")
    except Exception:
        failures += 1
        print(f"{title}: FAILED")
        traceback.print_exc()
sys.stdout.flush()
# stomp.py leaves threads behind that would keep the process.
os._exit(1 if failures else 0)
