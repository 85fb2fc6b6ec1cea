package push

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// longestLine bounds one line of an event stream, largestMessage one WebSocket message, in bytes.
const longestLine, largestMessage = 16 << 10, 64 << 10

// ended says why a connection is over, and how long the server asked to wait.
type ended struct {
	why   error
	retry time.Duration
}

func (e *ended) Error() string { return e.why.Error() }

// link is one connection of a stream; onUpdate is called for each update with its id and the time of its arrival.
type link struct {
	target   target
	options  *options
	post     uint64
	lastID   string
	onUpdate func(body []byte, id string, at time.Time, source string) error
	// Set when the stream was accepted.
	opened bool
}

func (l *link) host() string {
	if l.options.Host != "" {
		return l.options.Host
	}
	return l.target.host
}

// run holds the connection until it ends; it never returns nil.
func (l *link) run(ctx context.Context) *ended {
	if l.options.Transport == "stomp" {
		return l.stomp(ctx)
	}
	return l.sse(ctx)
}

// closeWith closes conn when ctx is done; the returned function ends the watch.
func closeWith(ctx context.Context, conn net.Conn) func() bool {
	return context.AfterFunc(ctx, func() { _ = conn.Close() })
}

func (l *link) sse(ctx context.Context) *ended {
	tcp, err := l.target.dial(ctx, 2*l.options.heartbeat)
	if err != nil {
		return &ended{why: err}
	}
	defer tcp.Close()
	defer closeWith(ctx, tcp)()
	conn, err := l.target.secure(ctx, tcp)
	if err != nil {
		return &ended{why: err}
	}
	var request strings.Builder
	fmt.Fprintf(&request, "GET %s/posts/%d/likes HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n", l.target.prefix, l.post, l.host())
	for name, value := range l.options.Headers {
		fmt.Fprintf(&request, "%s: %s\r\n", name, value)
	}
	if l.lastID != "" {
		fmt.Fprintf(&request, "Last-Event-ID: %s\r\n", l.lastID)
	}
	if _, err := io.WriteString(conn, request.String()+"\r\n"); err != nil {
		return &ended{why: err}
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return &ended{why: err}
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return refused(response)
	}
	if kind := response.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		return &ended{why: fmt.Errorf("the answer is %q, not an event stream", kind)}
	}
	l.opened = true
	var retry time.Duration
	err = events(response.Body, &retry, func(data []byte, id string) error { return l.onUpdate(data, id, tcp.at, tcp.source()) })
	return &ended{why: err, retry: retry}
}

// events reads an event stream until it ends; named events (heartbeats) are passed over.
func events(stream io.Reader, retry *time.Duration, onEvent func(data []byte, id string) error) error {
	lines := bufio.NewReaderSize(stream, longestLine)
	var data []byte
	var id, name string
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("a line is longer than %d bytes", longestLine)
		}
		if err != nil {
			return err
		}
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			if len(data) > 0 && (name == "" || name == "message") {
				if err := onEvent(data[:len(data)-1], id); err != nil {
					return err
				}
			}
			data, name = data[:0], ""
			continue
		}
		field, value, _ := strings.Cut(text, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			if len(data)+len(value) > largestMessage {
				return fmt.Errorf("an event is larger than %d bytes", largestMessage)
			}
			data = append(append(data, value...), '\n')
		case "id":
			if !strings.Contains(value, "\x00") {
				id = value
			}
		case "event":
			name = value
		case "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
				*retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// refused is the end of a stream that never began.
func refused(response *http.Response) *ended {
	end := &ended{why: fmt.Errorf("refused: %s", response.Status)}
	if seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 31); err == nil {
		end.retry = time.Duration(seconds) * time.Second
	}
	return end
}

// webSocket opens a STOMP session up to its CONNECT.
func webSocket(ctx context.Context, target target, host string, given *options) (*websocket.Conn, *stampedConn, *ended) {
	var tcp *stampedConn
	dialer := websocket.Dialer{
		HandshakeTimeout: dialTimeout,
		Subprotocols:     []string{"v12.stomp"},
		NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var err error
			tcp, err = target.dial(ctx, 2*given.heartbeat)
			return tcp, err
		},
	}
	scheme := "ws://"
	if target.tls {
		scheme = "wss://"
	}
	headers := http.Header{"Host": {host}}
	for name, value := range given.Headers {
		headers.Set(name, value)
	}
	conn, response, err := dialer.DialContext(ctx, scheme+target.host+target.prefix+"/stomp", headers)
	if err != nil {
		if response != nil && response.StatusCode != http.StatusSwitchingProtocols {
			return nil, nil, refused(response)
		}
		return nil, nil, &ended{why: err}
	}
	conn.SetReadLimit(largestMessage)
	beat := strconv.FormatInt(given.heartbeat.Milliseconds(), 10)
	name, _, _ := strings.Cut(host, ":")
	connect := encode("CONNECT", "accept-version", "1.2", "host", name, "heart-beat", beat+","+beat)
	if err := conn.WriteMessage(websocket.TextMessage, connect); err != nil {
		_ = conn.Close()
		return nil, nil, &ended{why: err}
	}
	return conn, tcp, nil
}

// beats sends a heart-beat per period until ctx is done; it is the only writer of messages from then on.
func beats(ctx context.Context, period time.Duration, write func([]byte) error) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if write([]byte("\n")) != nil {
				return
			}
		}
	}
}

func (l *link) stomp(ctx context.Context) *ended {
	conn, tcp, end := webSocket(ctx, l.target, l.host(), l.options)
	if end != nil {
		return end
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	defer closeWith(ctx, tcp)()
	write := func(message []byte) error { return conn.WriteMessage(websocket.TextMessage, message) }
	for {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return &ended{why: err}
		}
		frames, broken := decode(message)
		for _, got := range frames {
			switch got.command {
			case "CONNECTED":
				subscribe := []string{"id", "0", "destination", fmt.Sprintf("/topic/posts.%d.likes", l.post)}
				if l.lastID != "" {
					subscribe = append(subscribe, "last-version", l.lastID)
				}
				if err := write(encode("SUBSCRIBE", subscribe...)); err != nil {
					return &ended{why: err}
				}
				l.opened = true
				go beats(ctx, l.options.heartbeat, write)
			case "MESSAGE":
				if err := l.onUpdate(got.body, got.headers["message-id"], tcp.at, tcp.source()); err != nil {
					return &ended{why: err}
				}
			case "ERROR":
				return &ended{why: fmt.Errorf("ERROR: %s", got.headers["message"])}
			}
		}
		if broken != nil {
			return &ended{why: broken}
		}
	}
}
