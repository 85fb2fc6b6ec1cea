package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/grafana/sobek"
	"go.k6.io/k6/v2/js/common"
	"go.k6.io/k6/v2/js/promises"
)

// likeTimeout is how long a like may take before its outcome is unknown.
const likeTimeout = 5 * time.Second

// parsePost reads a post id from a property name; 0 is no post.
func parsePost(text string) uint64 {
	post, err := strconv.ParseUint(text, 10, 53)
	if err != nil {
		return 0
	}
	return post
}

// Liker is a user who likes over a STOMP session of its own, which outlives iterations: `liker(options)` in the init
// context or in a scenario, then `await liker.like(post)`. It has at most one like on its way.
type Liker struct {
	module  *instance
	options *options

	mutex   sync.Mutex
	session *session
	sent    uint64
}

// session is one connection of a Liker.
type session struct {
	conn  *websocket.Conn
	ready chan struct{}
	// Closed when the session is over, for the reason in `why`.
	over   chan struct{}
	why    error
	write  sync.Mutex
	reply  chan frame
	cancel context.CancelFunc
}

func (i *instance) liker(value sobek.Value) *Liker {
	given, err := i.parse(value, "url")
	if err != nil {
		common.Throw(i.vu.Runtime(), err)
	}
	return &Liker{module: i, options: given}
}

// Like sends a like and resolves with {version, likes, changed, status, ms}: ms is SEND to reply, in milliseconds with a
// fraction. It rejects when the outcome is a refusal, or unknown.
func (l *Liker) Like(post uint64) *sobek.Promise {
	promise, resolve, reject := promises.New(l.module.vu)
	ctx := l.module.vu.Context()
	go func() {
		answer, err := l.like(ctx, post)
		if err != nil {
			reject(err)
			return
		}
		resolve(answer)
	}()
	return promise
}

func (l *Liker) like(ctx context.Context, post uint64) (map[string]any, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	ctx, cancel := context.WithTimeout(ctx, likeTimeout)
	defer cancel()
	session, err := l.connected(ctx)
	if err != nil {
		return nil, err
	}
	l.sent++
	number := strconv.FormatUint(l.sent, 10)
	began := time.Now()
	if err := session.send(encode("SEND", "destination", fmt.Sprintf("/app/posts.%d.like", post), "correlation-id", number)); err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, errors.New("time-out: the outcome of a like is unknown")
		case <-session.over:
			return nil, fmt.Errorf("the outcome of a like is unknown: %w", session.why)
		case reply := <-session.reply:
			if reply.headers["correlation-id"] != number {
				continue // of a like that was given up
			}
			answer := map[string]any{}
			if err := json.Unmarshal(reply.body, &answer); err != nil {
				return nil, err
			}
			status := reply.headers["status"]
			if status != "200" && status != "202" {
				return nil, fmt.Errorf("a like was refused: %s %v", status, answer["title"])
			}
			answer["status"], answer["ms"] = status, float64(time.Since(began).Microseconds())/1000
			return answer, nil
		}
	}
}

// connected is the session, a new one if there is none.
func (l *Liker) connected(ctx context.Context) (*session, error) {
	if l.session != nil {
		select {
		case <-l.session.over:
		default:
			return l.session, nil
		}
	}
	number := 0
	if state := l.module.vu.State(); state != nil {
		number = int(state.VUID)
	}
	target, err := parseTarget(l.options.URL[number%len(l.options.URL)])
	if err != nil {
		return nil, err
	}
	host := l.options.Host
	if host == "" {
		host = target.host
	}
	lifetime, cancel := context.WithCancel(l.module.vu.Context())
	conn, tcp, end := webSocket(ctx, target, host, l.options)
	if end != nil {
		cancel()
		return nil, end
	}
	context.AfterFunc(lifetime, func() { _ = tcp.Close() })
	// A reply nobody waits for any more may be in the way of the next one.
	opened := &session{conn: conn, ready: make(chan struct{}), over: make(chan struct{}), reply: make(chan frame, 4), cancel: cancel}
	go opened.read(lifetime, l.options.heartbeat)
	select {
	case <-opened.ready:
		l.session = opened
		return opened, nil
	case <-opened.over:
		return nil, opened.why
	case <-ctx.Done():
		cancel()
		return nil, errors.New("time-out: the STOMP session did not open")
	}
}

func (s *session) send(message []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.conn.WriteMessage(websocket.TextMessage, message)
}

// read takes what arrives until the session is over.
func (s *session) read(ctx context.Context, heartbeat time.Duration) {
	defer close(s.over)
	defer s.cancel()
	defer s.conn.Close()
	for {
		_, message, err := s.conn.ReadMessage()
		if err != nil {
			s.why = err
			return
		}
		frames, broken := decode(message)
		for _, got := range frames {
			switch got.command {
			case "CONNECTED":
				go beats(ctx, heartbeat, s.send)
				broken = errors.Join(broken, s.send(encode("SUBSCRIBE", "id", "replies", "destination", "/user/queue/replies", "receipt", "replies")))
			case "RECEIPT":
				if got.headers["receipt-id"] == "replies" {
					close(s.ready)
				}
			case "MESSAGE":
				select {
				case s.reply <- got:
				default: // the oldest nobody wants
				}
			case "ERROR":
				broken = errors.Join(broken, fmt.Errorf("ERROR: %s", got.headers["message"]))
			}
		}
		if broken != nil {
			s.why = broken
			return
		}
	}
}
