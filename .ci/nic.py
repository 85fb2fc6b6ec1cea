"""Holds the configuration that F5's NGINX Ingress Controller made (nginx -T, on stdin) against the release's values (helm get values --all -o json, the argument)."""

import json
import re
import sys


def words(text):
    """Tokens of an nginx configuration, without comments; a quoted one is never punctuation."""
    for quoted, bare, mark in re.findall(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|([^\s{};#"'](?:\$\{|[^\s{};])*)|([{};]|#[^\n]*)""", text):
        if not mark.startswith("#"):
            yield (mark, True) if mark else (quoted[1:-1] if quoted else bare, False)


def block(tokens):
    """The directives up to the end of a block: (words, block or None)."""
    found, line = [], []
    for word, punctuation in tokens:
        if not punctuation:
            line.append(word)
        elif word == "{":
            found.append((line, block(tokens)))
            line = []
        elif word == ";":
            found.append((line, None))
            line = []
        else:
            break
    return found


def all_of(directives, name):
    for line, inner in directives:
        if line[:1] == [name]:
            yield line[1:], inner
        yield from all_of(inner or [], name)


def setting(directives, name):
    """The last value at this level, as text."""
    return next((" ".join(line[1:]) for line, _ in reversed(directives) if line[:1] == [name]), None)


def seconds(text):
    found = re.fullmatch(r"(\d+)s", text or "")
    return int(found[1]) if found else 60  # nginx' own


def main():
    values = json.load(open(sys.argv[1]))
    beat = values["pods"]["heartbeatSeconds"]
    config = block(words(sys.stdin.read()))
    upstreams = {name[0]: inner for name, inner in all_of(config, "upstream")}
    servers = {setting(inner, "server_name"): inner for _, inner in all_of(config, "server") if inner}
    wrong, owners, seen = [], {}, 0

    def expect(where, holds, what):
        if not holds:
            wrong.append(f"{where}: {what}")

    for limit, _ in all_of(config, "worker_shutdown_timeout"):
        expect("workers", False, f"old ones cut all their streams after {limit[0]}")
    for kinds, _ in all_of(config, "gzip_types"):
        expect("gzip", "text/event-stream" not in kinds, "streams are compressed")
    for variant, how in values["variants"].items():
        host = f"{variant}.{values['domain']}"
        locations = {" ".join(path): inner for path, inner in all_of(servers.get(host, []), "location")}
        found = {"sse": locations.get("/"), "stomp": locations.get("= /stomp") or locations.get('= "/stomp"')}
        for part, at in found.items():
            where = f"{host} {part}"
            if at is None:
                expect(where, False, f"no location (there are {sorted(locations)})")
                continue
            seen += 1
            name = setting(at, "proxy_pass").removeprefix("http://")
            upstream = upstreams.get(name, [])
            method = next((line[0] for line, _ in upstream if line[0] in ("least_conn", "random", "ip_hash", "hash")), "round_robin")
            expect(where, method == how["balance"], f"balances by {method}")
            expect(where, setting(upstream, "zone"), "each worker counts connections for itself")
            pods = [line for line, _ in upstream if line[0] == "server"]
            expect(where, pods and not any("unix:" in line[1] for line in pods), "no pods")
            expect(where, all("max_fails=0" in line for line in pods), "a pod that says 503 is left out by everybody")
            expect(where, owners.setdefault(name, where) == where, f"counts together with {owners[name]}")
            expect(where, setting(at, "proxy_buffering") == ("on" if how["buffering"] else "off"), f"buffering {setting(at, 'proxy_buffering')}")
            expect(where, setting(at, "proxy_http_version") == "1.1", "HTTP/1.0")
            for wait in ("proxy_read_timeout", "proxy_send_timeout"):
                expect(where, beat < seconds(setting(at, wait)) < 2 * beat, f"{wait} {setting(at, wait)}, heart-beat {beat} s")
            again = (setting(at, "proxy_next_upstream") or "").split()
            expect(where, "http_503" in again, "a stream that is refused is not tried again")
            expect(where, "non_idempotent" not in again, "likes are tried again")
            upgrades = any(line[:2] == ["proxy_set_header", "Upgrade"] for line, _ in at)
            expect(where, upgrades == (part == "stomp"), "upgrades" if upgrades else "does not upgrade")
    for line in wrong:
        print("FAIL", line)
    print(f"nginx: {seen} locations, {len(upstreams)} upstreams, {len(wrong)} failures")
    sys.exit(bool(wrong) or seen == 0)


main()
