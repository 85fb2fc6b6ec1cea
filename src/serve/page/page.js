// The page at /: one post, its likes pushed over SSE and over STOMP side by side.

import { keep, overSse, overStomp, silence } from "./live.js";
import { panel, wallClock } from "./panel.js";

const HEARTBEAT_MS = Number(document.documentElement.dataset.heartbeatMs);
const ANNOUNCE_MS = 4000;                            // a screen reader hears of changes at most this often
const ANSWER_MS = 12000;                             // what has not been answered by then will not be
const post = new URLSearchParams(location.search).get("post");
const at = id => document.getElementById(id);
let token = "";                                      // of this tab, never stored

/** fetch with the token, within `ANSWER_MS`, and what it answered: `{status, body, pod, wait}`. */
async function ask(method, path, headers = {}, body) {
  const signal = AbortSignal.timeout(ANSWER_MS), bearer = token && { Authorization: `Bearer ${token}` };
  const answer = await fetch(path, { method, body, signal, headers: { ...headers, ...bearer } });
  const text = await answer.text();
  let parsed;
  try { parsed = JSON.parse(text); } catch { parsed = { title: answer.statusText || "no words", detail: "the answer is not the pod's" }; }
  return { status: answer.status, body: parsed, pod: answer.headers.get("x-pushlab-pod"), wait: answer.headers.get("retry-after") };
}

/** A problem (RFC 9457) in words. */
const problem = ({ status, body, wait }) => `${status} ${body.title}: ${body.detail}${wait ? ` (again in ${wait} s)` : ""}`;

const likes = count => count === 1 ? "1 like" : `${count ?? "no"} likes`;

// One polite voice for everything that changes: seldom enough to be listened to, and only what is new.
const voice = (() => {
  const now = {}, told = {};
  let timer = null, due = 0;
  const speak = () => {
    timer = null;
    due = performance.now() + ANNOUNCE_MS;
    const fresh = Object.keys(now).filter(kind => now[kind] !== told[kind]);
    Object.assign(told, now);
    at("announce").textContent = fresh.map(kind => now[kind]).filter(Boolean).join(". ");
  };
  return (kind, text) => {
    if (now[kind] === text) return;
    now[kind] = text;
    timer ??= setTimeout(speak, Math.max(300, due - performance.now()));
  };
})();

function say(text, bad = false, type) {
  voice("said", bad ? text : "");
  const said = at("said");
  said.textContent = text;
  said.classList.toggle("bad", bad);
  if (bad && type?.startsWith("/problems/")) {
    const link = document.createElement("a");
    link.href = type;
    link.textContent = "what to do";
    said.append(" ", link);
  }
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = false;
}

function signInIf(answer) {
  if (answer.status === 401) at("auth").open = true;
}

// Single-use, so one for each attempt; a page without a token relies on the cookie, or on nothing.
async function ticket() {
  if (!token) return null;
  const answer = await ask("POST", "/tickets");
  if (answer.status >= 300) throw new Error(problem(answer));
  return answer.body.ticket;
}

function watch() {
  const path = `/posts/${post}/likes`;
  const sides = { SSE: panel("sse"), STOMP: panel("stomp") };
  const showOn = side => (update, epoch) => { side.show(update, epoch); announce(); };
  const stomp = overStomp(post, HEARTBEAT_MS, () => token, showOn(sides.STOMP));
  const announce = () => {
    const { SSE, STOMP } = sides;
    voice("count", SSE.likes === STOMP.likes ? likes(SSE.likes) : `SSE ${likes(SSE.likes)}, STOMP ${likes(STOMP.likes)}`);
    for (const name of Object.keys(sides)) voice(name, sides[name].lost ? `${name} is reconnecting` : "");
  };
  const start = (name, connect) => {
    const side = sides[name];
    let asking = false;
    return keep(connect, silence(HEARTBEAT_MS), async event => {
      side.tell(event);
      if (event.state !== "connecting") side.lost = event.state === "waiting";
      announce();
      if (!event.refused || asking) return;
      // Neither an EventSource nor a WebSocket says why it was refused; the answer to a plain request may.
      asking = true;
      try {
        const answer = await ask("GET", path);
        signInIf(answer);
        if (answer.status >= 400) side.because(problem(answer));
      } catch { side.because("the server cannot be reached"); }
      asking = false;
    });
  };
  const keepers = [start("SSE", overSse(post, ticket, showOn(sides.SSE))), start("STOMP", stomp.connect)];
  addEventListener("online", () => keepers.forEach(keeper => keeper.now()));
  addEventListener("pageshow", event => { if (event.persisted) keepers.forEach(keeper => keeper.again()); });
  wallClock();

  // Likes, by the way chosen.
  const byPost = async what => {
    // A take-back without a user needs a key: proxies and HTTP libraries repeat DELETE by themselves.
    const [method, headers] = what === "like" ? ["POST", {}] : ["DELETE", { "idempotency-key": `"${crypto.getRandomValues(new Uint32Array(4)).join("-")}"` }];
    try { return { name: method, ...await ask(method, path, headers) }; } catch { return { name: method, unknown: "no answer came" }; }
  };
  const bySend = async what => ({ name: "SEND", ...await stomp.send(what) });
  const change = async what => {
    const answer = await (document.querySelector("[name=by]:checked").value === "send" ? bySend : byPost)(what);
    if (answer.offline) return say("SEND: STOMP is not connected; nothing was sent", true);
    if (answer.unknown) return say(`${answer.name}: ${answer.unknown}; it is not known whether it was counted`, true);
    signInIf(answer);
    const { status, body } = answer;
    if (status >= 300) return say(`${answer.name}: ${problem(answer)}`, true, body.type);
    const by = answer.pod ? `, by ${answer.pod}` : "";
    if (body.pending) return say(`${answer.name}: kept; it will be counted${by}`);
    say(`${answer.name}: ${body.changed === false ? "nothing changed" : "counted"}; ${likes(body.likes)}, version ${body.version}${by}`);
  };
  at("like").onclick = () => change("like");
  at("unlike").onclick = () => change("unlike");
  at("burst").onclick = () => { for (let i = 0; i < 20; i++) setTimeout(() => change("like"), i * 100); };
  return keepers;
}

at("create").onsubmit = async event => {
  event.preventDefault();
  try {
    const answer = await ask("POST", "/posts", { "content-type": "application/json" }, JSON.stringify({ title: at("title").value }));
    signInIf(answer);
    if (answer.status < 300) location.search = `?post=${answer.body.id}`; else trouble(problem(answer));
  } catch { trouble("The server cannot be reached."); }
};

async function start() {
  if (!post) {
    at("choose").hidden = false;
    return [];
  }
  const answer = await ask("GET", `/posts/${encodeURIComponent(post)}`);
  if (answer.status >= 300) {
    signInIf(answer);
    trouble(problem(answer));
    if (answer.status === 404) at("choose").hidden = false;
    else if (answer.status !== 401) later();         // a token is somebody's to give, and no time helps
    return [];
  }
  at("trouble").hidden = true;
  at("post-title").textContent = document.title = answer.body.title || `Post ${post}`;
  at("post-number").textContent = post;
  at("post").hidden = false;
  return watch();
}

let keepers = [], beginning = null;
const later = () => { beginning = setTimeout(begin, 2000 + 2000 * Math.random()); };
function begin() {
  clearTimeout(beginning);
  start().then(made => { keepers = made; }, () => {
    trouble("The server cannot be reached; trying again.");
    later();
  });
}
at("sign-in").onsubmit = event => {
  event.preventDefault();
  token = at("token").value.trim();
  at("auth").open = false;
  if (keepers.length) keepers.forEach(keeper => keeper.again()); else begin();
};
begin();
