// Connections that come back: one supervisor for both transports, and what is particular to each.
// A native EventSource gives up after one 502 or 503 and never notices silence, so it is re-created here like the WebSocket.

import { frame, frames, heartBeat } from "./stomp.js";

const FIRST_MS = 400, LONGEST_MS = 15000;  // waits before another attempt: doubled each time, half of it random
const ATTEMPT_MS = 5000;                   // an attempt that has not opened by then is given up
const STEADY_MS = 5000;                    // a connection that lived this long starts the waits from the beginning

/** Milliseconds of silence after which a connection is taken for dead: two heart-beats; 0 when the pod sends none. */
export const silence = heartbeat => 2 * heartbeat;

/**
 * Keeps one connection. `connect(link)` starts an attempt and returns what ends it; it tells the link `alive`, `opened`, `shown`
 * and `lost`. `tell` hears `{state, why, wait, recovered, pod}`. Returns `now()`, which ends a wait, and `again()`, which starts afresh.
 */
export function keep(connect, quiet, tell) {
  let attempts = 0, noticed = null, waiting = null, link = null;
  function open() {
    waiting = null;
    let dog, opened = null, over = false, end = () => {};
    const mine = link = {
      alive(ms = quiet) {
        clearTimeout(dog);
        if (!over && ms) dog = setTimeout(() => mine.lost(`${opened === null ? "no answer" : "silent"} for ${(ms / 1000).toFixed(0)} s`), ms);
      },
      opened() {
        if (over) return;
        opened = performance.now();
        mine.alive();
        tell({ state: "open" });
      },
      on(pod) { if (pod) tell({ state: opened === null ? "connecting" : "open", pod }); },
      shown() {
        if (noticed === null) return;
        const recovered = performance.now() - noticed;
        noticed = null;
        tell({ state: "open", recovered });
      },
      lost(why) {
        if (over) return;
        over = true;
        clearTimeout(dog);
        end();
        const now = performance.now();
        noticed ??= now;
        if (opened !== null && now - opened > STEADY_MS) attempts = 0;
        const wait = Math.min(FIRST_MS * 2 ** attempts++, LONGEST_MS) * (0.5 + Math.random());
        tell({ state: "waiting", why, wait, refused: opened === null });
        waiting = setTimeout(open, wait);
      },
      get over() { return over; },
      get isOpen() { return opened !== null; },
    };
    tell({ state: "connecting" });
    mine.alive(ATTEMPT_MS);
    Promise.resolve(mine).then(connect).then(ender => { end = ender; if (over) end(); }, error => mine.lost(error.message));
  }
  open();
  const now = () => { if (waiting !== null) { clearTimeout(waiting); open(); } };
  return { now, again() { attempts = 0; if (waiting === null) link.lost("starting afresh"); now(); } };
}

/** The state of a post over SSE. `ticket()` gives a single-use ticket or nothing; `show` gets each update and its epoch. */
export function overSse(post, ticket, show) {
  let lastId = "";
  return async link => {
    const query = new URLSearchParams({ heartbeat: "event" });
    if (lastId) query.set("lastEventId", lastId);
    const pass = await ticket();
    if (pass) query.set("ticket", pass);
    if (link.over) return () => {};
    const source = new EventSource(`/posts/${post}/likes?${query}`);
    source.onopen = () => link.opened();
    source.addEventListener("heartbeat", event => {
      link.alive();
      link.on(JSON.parse(event.data).pod);           // only the first one says it
    });
    source.onmessage = event => {
      if (link.over) return;
      link.alive();
      if (!event.data) return;                       // what some proxies and servers make of a lone `retry:`
      lastId = event.lastEventId;
      show(JSON.parse(event.data), lastId.split(".")[0]);
      link.shown();
    };
    source.onerror = () => link.lost(source.readyState === EventSource.CLOSED ? "refused" : "cut off");
    return () => { source.onmessage = source.onerror = null; source.close(); };
  };
}

/** The same over STOMP, with SENDs and their replies. */
export function overStomp(post, heartbeat, token, show) {
  const waiting = new Map();                         // correlation-id → what its SEND waits for
  let version = "", socket = null, quiet, sent = 0;
  const gone = why => {
    socket = null;
    for (const settle of waiting.values()) settle({ unknown: why });
    waiting.clear();
  };
  const connect = link => {
    const mine = new WebSocket(location.origin.replace(/^http/, "ws") + "/stomp", ["v12.stomp"]);
    let beat = null;
    mine.onopen = () => mine.send(frame("CONNECT", {
      "accept-version": "1.2", host: location.hostname, "heart-beat": `${heartbeat},${heartbeat}`,
      ...(token() && { Authorization: `Bearer ${token()}` }),
    }));
    mine.onclose = event => link.lost(event.reason || (socket === mine ? "cut off" : "refused"));
    const receive = ({ command, headers, body }) => {
      if (command === "CONNECTED") {
        const { send, hear } = heartBeat(heartbeat, headers["heart-beat"]);
        quiet = silence(hear);
        if (send) beat = setInterval(() => mine.send("\n"), send * 0.6);   // well before it is due: timers are late
        mine.send(frame("SUBSCRIBE", { id: "replies", destination: "/user/queue/replies" }));
        mine.send(frame("SUBSCRIBE", {
          id: "likes", destination: `/topic/posts.${post}.likes`, ...(version && { "last-version": version }),
        }));
        link.on(headers.server?.split(" ")[1]);
        socket = mine;
      } else if (command === "MESSAGE" && headers.subscription === "likes") {
        if (!link.isOpen) link.opened();             // as with SSE: once the stream has begun, not the connection
        const [epoch, , number] = headers["message-id"].split(".");
        version = `${epoch}.${number}`;
        show(JSON.parse(body), epoch);
        link.shown();
      } else if (command === "MESSAGE") {
        waiting.get(headers["correlation-id"])?.({ status: Number(headers.status), body: JSON.parse(body) });
        waiting.delete(headers["correlation-id"]);
      } else if (command === "ERROR") {
        const problem = headers["content-type"] === "application/problem+json" && JSON.parse(body);
        link.lost(problem ? `${problem.status} ${problem.title}: ${problem.detail}` : headers.message || "refused");
      }
    };
    mine.onmessage = message => {
      if (link.over) return;
      link.alive(link.isOpen ? quiet : ATTEMPT_MS);
      frames(message.data).forEach(receive);
    };
    return () => {
      clearInterval(beat);
      mine.onmessage = mine.onclose = null;
      mine.close();
      if (socket === mine) gone("the connection was lost before the answer");
    };
  };
  /** SENDs `like` or `unlike`; the reply's status and body, or `{unknown}` when none came. */
  const send = what => new Promise(settle => {
    if (!socket) return settle({ offline: true });
    const id = `${what}-${++sent}`;
    waiting.set(id, settle);
    setTimeout(() => { if (waiting.delete(id)) settle({ unknown: "no answer came" }); }, 15000);
    socket.send(frame("SEND", { destination: `/app/posts.${post}.${what}`, "correlation-id": id }));
  });
  return { connect, send };
}
