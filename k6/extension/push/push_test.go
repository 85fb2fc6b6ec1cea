package push

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"go.k6.io/k6/v2/js/modulestest"
	"go.k6.io/k6/v2/lib"
	"go.k6.io/k6/v2/metrics"
)

// vu is a k6 VU with the module, and the samples that it emitted.
type vu struct {
	t       *testing.T
	runtime *modulestest.Runtime
	samples chan metrics.SampleContainer
}

func newVU(t *testing.T) *vu {
	t.Helper()
	runtime := modulestest.NewRuntime(t)
	instance := new(root).NewModuleInstance(runtime.VU)
	for name, export := range instance.Exports().Named {
		require.NoError(t, runtime.VU.Runtime().Set(name, export))
	}
	samples := make(chan metrics.SampleContainer, 100_000)
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	registry := runtime.VU.InitEnvField.Registry
	runtime.MoveToVUContext(&lib.State{
		Samples: samples, Logger: quiet, Tags: lib.NewVUStateTags(registry.RootTagSet()),
	})
	return &vu{t: t, runtime: runtime, samples: samples}
}

// run runs the body of an async function as k6 would run an iteration, and returns what it returns.
func (v *vu) run(body string, arguments ...any) map[string]any {
	v.t.Helper()
	var got string
	require.NoError(v.t, v.runtime.VU.Runtime().Set("told", func(text string) { got = text }))
	script := "(async () => {" + fmt.Sprintf(body, arguments...) + "})().then(r => told(JSON.stringify(r ?? null)), e => told(JSON.stringify({error: String(e)})))"
	_, err := v.runtime.RunOnEventLoop(script)
	require.NoError(v.t, err)
	result := map[string]any{}
	require.NoError(v.t, json.Unmarshal([]byte(got), &result), got)
	return result
}

// values are the values of a metric so far, by the tag `stamped` or `kind` where it has one.
func (v *vu) values() map[string][]float64 {
	found := map[string][]float64{}
	for {
		select {
		case container := <-v.samples:
			for _, sample := range container.GetSamples() {
				name := sample.Metric.Name
				for _, tag := range []string{"stamped", "kind"} {
					if value, ok := sample.Tags.Get(tag); ok {
						name += "/" + value
					}
				}
				found[name] = append(found[name], sample.Value)
			}
		default:
			return found
		}
	}
}

func sum(values []float64) (total float64) {
	for _, value := range values {
		total += value
	}
	return total
}

// wire is a server that speaks as a pod does; what each connection is told is the test's.
type wire struct {
	*httptest.Server
	mutex sync.Mutex
	// Last-Event-ID or last-version of each connection, in order.
	resumed []string
	// Bodies with their ids, per connection; the last script repeats. Then the connection ends.
	scripts [][]event
	hold    bool
}

type event struct{ id, body string }

func change(version, prev int) event {
	body := fmt.Sprintf(`{"postId":7,"likes":%d,"version":%d,"prev":%d,"committedAt":%d}`, version, version, prev, time.Now().UnixMicro())
	return event{fmt.Sprintf("0000abcd.%d", version), body}
}

func snapshot(version int) event {
	return event{fmt.Sprintf("0000abcd.%d", version), fmt.Sprintf(`{"postId":7,"likes":%d,"version":%d,"snapshot":true}`, version, version)}
}

func (w *wire) next(resumed string) []event {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.resumed = append(w.resumed, resumed)
	return w.scripts[min(len(w.resumed), len(w.scripts))-1]
}

func serve(t *testing.T, hold bool, scripts ...[]event) *wire {
	w := &wire{scripts: scripts, hold: hold}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /posts/7/likes", func(out http.ResponseWriter, request *http.Request) {
		if request.Header.Get("Accept") != "text/event-stream" {
			out.WriteHeader(http.StatusNotAcceptable)
			return
		}
		events := w.next(request.Header.Get("Last-Event-ID"))
		out.Header().Set("Content-Type", "text/event-stream")
		for _, event := range events {
			_, _ = fmt.Fprintf(out, ": comment\nretry: 20\nid: %s\ndata: %s\n\nevent: heartbeat\ndata:\n\n", event.id, event.body)
			out.(http.Flusher).Flush()
		}
		if w.hold {
			<-request.Context().Done()
		}
	})
	mux.HandleFunc("GET /stomp", func(out http.ResponseWriter, request *http.Request) { w.stomp(out, request) })
	w.Server = httptest.NewServer(mux)
	t.Cleanup(w.Close)
	return w
}

func (w *wire) stomp(out http.ResponseWriter, request *http.Request) {
	upgrader := websocket.Upgrader{Subprotocols: []string{"v12.stomp"}}
	conn, err := upgrader.Upgrade(out, request, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	say := func(text string) { _ = conn.WriteMessage(websocket.TextMessage, []byte(text)) }
	for {
		_, message, err := conn.ReadMessage()
		if err != nil {
			return
		}
		frames, _ := decode(message)
		for _, frame := range frames {
			switch frame.command {
			case "CONNECT":
				say("CONNECTED\nversion:1.2\nheart-beat:10000,10000\n\n\x00")
			case "SUBSCRIBE":
				if receipt, ok := frame.headers["receipt"]; ok {
					say("RECEIPT\nreceipt-id:" + receipt + "\n\n\x00")
					continue
				}
				for _, event := range w.next(frame.headers["last-version"]) {
					epoch, version, _ := strings.Cut(event.id, ".")
					say(fmt.Sprintf("\nMESSAGE\nsubscription:0\nmessage-id:%s.7.%s\ndestination:/topic/posts.7.likes\ncontent-length:%d\n\n%s\x00\n", epoch, version, len(event.body), event.body))
				}
				if !w.hold {
					return
				}
			case "SEND":
				status, body := "200", `{"postId":7,"likes":1,"version":1,"changed":true}`
				if frame.headers["destination"] != "/app/posts.7.like" {
					status, body = "404", `{"title":"no such post"}`
				}
				say(fmt.Sprintf("MESSAGE\nsubscription:replies\nmessage-id:r\nstatus:%s\ncorrelation-id:%s\n\n%s\x00", status, frame.headers["correlation-id"], body))
			}
		}
	}
}

const watch = `const s = subscribe({transport: %q, url: %q, posts: [7], streams: %d, connectRate: 1000, heartbeat: '%s'});
	const joined = await s.joined('10s'); const lost = await s.reached({7: %d}, '%s'); s.close();
	return {...s.summary(), lost};`

func TestArrivalsAreStampedAndGapsAndDuplicatesCounted(t *testing.T) {
	for _, transport := range []string{"sse", "stomp"} {
		w := serve(t, true, []event{snapshot(3), change(4, 3), change(4, 3), change(9, 7)})
		v := newVU(t)
		got := v.run(watch, transport, w.URL, 3, "10s", 9, "10s")
		require.Equal(t, map[string]any{
			"streams": 3.0, "joined": 3.0, "updates": 6.0, "gaps": 9.0, "duplicates": 3.0, "snapshots": 3.0, "reconnects": 0.0,
			"timeouts": 0.0, "stamped": "kernel", "lost": 0.0,
		}, got, transport)
		values := v.values()
		latencies := values["pushlab_commit_to_arrival/kernel"]
		require.Len(t, latencies, 6, transport)
		for _, ms := range latencies {
			require.Greater(t, ms, 0.0)
			require.NotEqual(t, ms, float64(int(ms)), "fractions of a millisecond are kept")
		}
		require.Equal(t, 9.0, sum(values["pushlab_gaps"]))
		require.Len(t, values["pushlab_time_to_join"], 3)
	}
}

func TestAStreamThatEndsIsResumedWhereItWas(t *testing.T) {
	for transport, want := range map[string]string{"sse": "0000abcd.4", "stomp": "0000abcd.7.4"} {
		w := serve(t, false, []event{snapshot(3), change(4, 3)}, []event{change(6, 5), change(7, 6)})
		v := newVU(t)
		got := v.run(watch, transport, w.URL, 1, "10s", 7, "20s")
		require.Equal(t, 0.0, got["lost"], transport)
		require.Equal(t, 1.0, got["gaps"], transport)
		require.GreaterOrEqual(t, got["reconnects"], 1.0, transport)
		w.mutex.Lock()
		require.Equal(t, []string{"", want}, w.resumed[:2], transport)
		w.mutex.Unlock()
	}
}

func TestSilenceIsATimeOutAndAFinalThatNeverComesIsLost(t *testing.T) {
	for _, transport := range []string{"sse", "stomp"} {
		w := serve(t, true, []event{snapshot(3)})
		v := newVU(t)
		got := v.run(watch, transport, w.URL, 2, "100ms", 4, "600ms")
		require.Equal(t, 2.0, got["lost"], transport)
		values := v.values()
		require.GreaterOrEqual(t, sum(values["pushlab_timeouts/silent"]), 2.0, transport)
		require.Equal(t, 2.0, sum(values["pushlab_lost_finals"]), transport)
	}
}

func TestANewEpochForgetsVersions(t *testing.T) {
	w := serve(t, true, []event{snapshot(9), {"0000ef01.1", `{"postId":7,"likes":1,"version":1,"snapshot":true}`}, {"0000ef01.2", change(2, 1).body}})
	v := newVU(t)
	got := v.run(`const s = subscribe({transport: 'sse', url: %q, posts: [7]}); await s.joined('5s');
		while (s.summary().updates < 1) await s.reached({7: 99}, '10ms'); s.close(); return s.summary();`, w.URL)
	require.Equal(t, []any{1.0, 0.0, 0.0}, []any{got["updates"], got["gaps"], got["duplicates"]})
}

func TestALikerKeepsItsSession(t *testing.T) {
	w := serve(t, true, nil)
	v := newVU(t)
	got := v.run(`const l = liker({url: %q}); const a = await l.like(7), b = await l.like(7);
		return {versions: [a.version, b.version], timed: a.ms > 0, refused: await l.like(8).catch(e => String(e))};`, w.URL)
	require.Equal(t, []any{1.0, 1.0}, got["versions"])
	require.Equal(t, true, got["timed"])
	require.Contains(t, got["refused"], "refused: 404 no such post")
	v.runtime.CancelContext()
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	v := newVU(t)
	for options, want := range map[string]string{
		`{transport: 'sse', posts: [1]}`:                                     "option url is missing",
		`{transport: 'sse', url: 'here', posts: [1]}`:                        "no base URL",
		`{transport: 'ws', url: 'http://a', posts: [1]}`:                     `"sse" or "stomp"`,
		`{transport: 'sse', url: 'http://a', posts: []}`:                     "no post",
		`{transport: 'sse', url: 'http://a', posts: [1], stream: 3}`:         `"stream" is no option`,
		`{transport: 'sse', url: 'http://a', posts: [1], streams: 0}`:        "streams is 0",
		`{transport: 'sse', url: ['http://a'], posts: [1], heartbeat: '10'}`: "heartbeat",
		`{transport: 'sse', url: 'http://a', posts: [1], connectRate: 0}`:    "connectRate",
	} {
		require.Contains(t, v.run("subscribe(%s)", options)["error"], want, options)
	}
	require.Contains(t, v.run("subscribe()")["error"], "options are missing")
}

func TestARefusalCarriesTheServersWish(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Retry-After", "2")
		out.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	target, err := parseTarget(server.URL)
	require.NoError(t, err)
	for _, transport := range []string{"sse", "stomp"} {
		link := link{target: target, options: &options{Transport: transport, heartbeat: time.Second}, post: 7}
		end := link.run(context.Background())
		require.ErrorContains(t, end, "refused: 503")
		require.Equal(t, 2*time.Second, end.retry)
	}
	require.Equal(t, 8*time.Second, backOff(2*time.Second, 3))
	require.Equal(t, 30*time.Second, backOff(2*time.Second, 99))
}

func TestFramesHoweverOdd(t *testing.T) {
	frames, err := decode([]byte("\n\nMESSAGE\r\na:1\r\na:2\r\nodd\\c:x\\n\\\\\r\ncontent-length:3\r\n\r\na\x00b\x00\nRECEIPT\n\n\x00"))
	require.NoError(t, err)
	require.Len(t, frames, 2)
	require.Equal(t, map[string]string{"a": "1", "odd:": "x\n\\", "content-length": "3"}, frames[0].headers)
	require.Equal(t, "a\x00b", string(frames[0].body))
	for _, bad := range []string{"MESSAGE", "MESSAGE\n\n", "MESSAGE\na\n\n\x00", "MESSAGE\na:\\t\n\n\x00", "MESSAGE\na:\\\n\n\x00", "MESSAGE\ncontent-length:9\n\nx\x00", "MESSAGE\ncontent-length:-1\n\nx\x00"} {
		_, err := decode([]byte(bad))
		require.ErrorIs(t, err, errFrame, "%q", bad)
	}
	require.Equal(t, "SEND\nodd\\c:a\\\\\n\n\x00", string(encode("SEND", "odd:", "a\\")))
}

func TestAnEventStreamIsBounded(t *testing.T) {
	var retry time.Duration
	err := events(strings.NewReader("data: "+strings.Repeat("x", longestLine)+"\n\n"), &retry, nil)
	require.ErrorContains(t, err, "longer than")
}

// pod starts the real service when PUSHLAB names its binary.
func pod(t *testing.T) string {
	t.Helper()
	program := os.Getenv("PUSHLAB")
	if program == "" {
		t.Skip("PUSHLAB names no pushlab binary (cargo build; PUSHLAB=target/debug/pushlab)")
	}
	database := "sqlite:" + filepath.Join(t.TempDir(), "likes.db")
	command := exec.Command(program, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--database-url", database, "--drain", "0", "--drain-grace", "0")
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	var told struct{ Listen string }
	require.NoError(t, json.Unmarshal([]byte(line), &told))
	return "http://" + told.Listen
}

func TestARealPod(t *testing.T) {
	base := pod(t)
	for _, transport := range []string{"sse", "stomp"} {
		answer, err := http.Post(base+"/posts", "application/json", strings.NewReader(`{"title":"k6"}`))
		require.NoError(t, err)
		var made struct{ ID int }
		require.NoError(t, json.NewDecoder(answer.Body).Decode(&made))
		_ = answer.Body.Close()
		v := newVU(t)
		got := v.run(`const s = subscribe({transport: %q, url: %q, posts: [%d], streams: 5}), l = liker({url: %q});
			await s.joined('10s'); let last; for (let i = 0; i < 10; i++) last = await l.like(%d);
			const lost = await s.reached({%d: last.version}, '10s'); s.close(); return {...s.summary(), lost, version: last.version};`,
			transport, base, made.ID, base, made.ID, made.ID)
		require.Equal(t, []any{10.0, 0.0, 5.0, 5.0, "kernel"}, []any{got["version"], got["lost"], got["joined"], got["snapshots"], got["stamped"]}, transport)
		require.Equal(t, 50.0, got["updates"].(float64)+got["gaps"].(float64), "every version was told of or passed over")
		v.runtime.CancelContext()
	}
}

func TestWithoutKernelStampsGoStamps(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	conn := stamp(here, time.Second)
	defer conn.Close()
	go func() { _, _ = there.Write([]byte("x")) }()
	before := time.Now()
	_, err := conn.Read(make([]byte, 8))
	require.NoError(t, err)
	require.Equal(t, "go", conn.source())
	require.False(t, conn.at.Before(before))
}
