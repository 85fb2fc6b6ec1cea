package push

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// dialTimeout is how long a connection and its handshake may take.
const dialTimeout = 10 * time.Second

// target is a base URL taken apart.
type target struct {
	address string
	host    string
	prefix  string
	tls     bool
}

func parseTarget(base string) (target, error) {
	parsed, err := url.Parse(base)
	if err != nil || parsed.Host == "" || (parsed.Scheme != "http" && parsed.Scheme != "https") {
		return target{}, fmt.Errorf("%q is no base URL: write for example http://127.0.0.1:8080", base)
	}
	found := target{address: parsed.Host, host: parsed.Host, prefix: strings.TrimRight(parsed.Path, "/"), tls: parsed.Scheme == "https"}
	if parsed.Port() == "" {
		port := "80"
		if found.tls {
			port = "443"
		}
		found.address = net.JoinHostPort(parsed.Hostname(), port)
	}
	return found, nil
}

// dial opens a connection whose arrivals are stamped; silence is the longest wait for bytes.
func (t target) dial(ctx context.Context, silence time.Duration) (*stampedConn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	return stamp(conn, silence), nil
}

// secure wraps conn where the URL is https.
func (t target) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if !t.tls {
		return conn, nil
	}
	name, _, err := net.SplitHostPort(t.address)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(conn, &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	return secured, secured.HandshakeContext(ctx)
}
