// Package push is `k6/x/push`: subscribes to posts over SSE or STOMP, many streams per VU without blocking it. The time of
// an arrival is taken by the kernel (Linux) or in Go, in µs, before any JavaScript runs.
package push

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"github.com/grafana/sobek"
	"go.k6.io/k6/v2/js/common"
	"go.k6.io/k6/v2/js/modules"
	"go.k6.io/k6/v2/metrics"
)

func init() { modules.Register("k6/x/push", new(root)) }

type root struct{}

// instance is what one VU imports.
type instance struct {
	vu      modules.VU
	metrics *instruments
}

// NewModuleInstance implements modules.Module.
func (*root) NewModuleInstance(vu modules.VU) modules.Instance {
	instruments, err := newInstruments(vu.InitEnv().Registry)
	if err != nil {
		common.Throw(vu.Runtime(), err)
	}
	return &instance{vu: vu, metrics: instruments}
}

// Exports implements modules.Instance.
func (i *instance) Exports() modules.Exports {
	return modules.Exports{Named: map[string]any{
		"subscribe": i.subscribe,
		"liker":     i.liker,
		"k6Version": k6Version(),
	}}
}

// k6Version is the version of the k6 that was built with this module.
func k6Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dependency := range info.Deps {
		if strings.HasPrefix(dependency.Path, "go.k6.io/k6") {
			return dependency.Version
		}
	}
	return ""
}

// instruments are the metrics; `k6_` and the unit are added by the Prometheus output.
type instruments struct {
	// Commit (the pod's clock) to arrival of each change that a stream had not seen.
	commitToArrival *metrics.Metric
	// First attempt to first state.
	timeToJoin *metrics.Metric
	// Versions that a stream was never told of one by one: conflated, superseded, or lost.
	gaps *metrics.Metric
	// Changes that a stream had seen before.
	duplicates *metrics.Metric
	// States, at the start of a stream or after a repair.
	snapshots *metrics.Metric
	// Connections after the first of a stream.
	reconnects *metrics.Metric
	// By kind: connect, silent (nothing for two heartbeats).
	timeouts *metrics.Metric
	// Streams that did not reach the final version in time.
	lostFinals *metrics.Metric
	// Arrivals that were stamped in Go, because the kernel gave no stamp.
	userStamps *metrics.Metric
}

func newInstruments(registry *metrics.Registry) (*instruments, error) {
	var all instruments
	var failed []error
	register := func(into **metrics.Metric, name string, sort metrics.MetricType, unit ...metrics.ValueType) {
		metric, err := registry.NewMetric(name, sort, unit...)
		*into = metric
		failed = append(failed, err)
	}
	register(&all.commitToArrival, "pushlab_commit_to_arrival", metrics.Trend, metrics.Time)
	register(&all.timeToJoin, "pushlab_time_to_join", metrics.Trend, metrics.Time)
	register(&all.gaps, "pushlab_gaps", metrics.Counter)
	register(&all.duplicates, "pushlab_duplicates", metrics.Counter)
	register(&all.snapshots, "pushlab_snapshots", metrics.Counter)
	register(&all.reconnects, "pushlab_reconnects", metrics.Counter)
	register(&all.timeouts, "pushlab_timeouts", metrics.Counter)
	register(&all.lostFinals, "pushlab_lost_finals", metrics.Counter)
	register(&all.userStamps, "pushlab_user_stamps", metrics.Counter)
	return &all, errors.Join(failed...)
}

// options are what subscribe and liker take; durations are written as in Go: "500ms", "10s".
type options struct {
	// "sse" or "stomp".
	Transport string `js:"transport"`
	// Base URLs; stream i takes the i-th in turn.
	URL []string `js:"url"`
	// Host header, where it is not the URL's (an edge that routes by host).
	Host string `js:"host"`
	// Further headers of the stream's request or handshake.
	Headers map[string]string `js:"headers"`
	// Post ids; stream i watches the i-th in turn.
	Posts []uint64 `js:"posts"`
	// How many streams.
	Streams int `js:"streams"`
	// New streams per second.
	ConnectRate float64 `js:"connectRate"`
	// The server's heartbeat; a stream that is silent for two of them is given up.
	Heartbeat string `js:"heartbeat"`
	// Further tags of all samples.
	Tags map[string]string `js:"tags"`

	heartbeat time.Duration
}

// mostStreams is the limit of one subscribe.
const mostStreams = 100_000

// parse reads and checks options; unknown names are refused, so that a typo is not a default.
func (i *instance) parse(value sobek.Value, need ...string) (*options, error) {
	known := []string{"transport", "url", "host", "headers", "posts", "streams", "connectRate", "heartbeat", "tags"}
	if value == nil || sobek.IsUndefined(value) || sobek.IsNull(value) {
		return nil, errors.New("options are missing: push.subscribe({transport: 'sse', url: 'http://…', posts: [1], streams: 10})")
	}
	object := value.ToObject(i.vu.Runtime())
	for _, name := range object.Keys() {
		if at := sort.SearchStrings(sorted(known), name); at == len(known) || sorted(known)[at] != name {
			return nil, fmt.Errorf("%q is no option; there are %s", name, strings.Join(known, ", "))
		}
	}
	for _, name := range need {
		if given := object.Get(name); given == nil || sobek.IsUndefined(given) {
			return nil, fmt.Errorf("the option %s is missing", name)
		}
	}
	if url := object.Get("url"); url != nil {
		if one, ok := url.Export().(string); ok {
			object = i.vu.Runtime().NewObject()
			for _, name := range value.ToObject(i.vu.Runtime()).Keys() {
				_ = object.Set(name, value.ToObject(i.vu.Runtime()).Get(name))
			}
			_ = object.Set("url", []string{one})
		}
	}
	given := options{Streams: 1, ConnectRate: 500, Heartbeat: "10s"}
	if err := i.vu.Runtime().ExportTo(object, &given); err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	return &given, given.check()
}

func sorted(names []string) []string {
	names = append([]string(nil), names...)
	sort.Strings(names)
	return names
}

func (o *options) check() (err error) {
	if o.heartbeat, err = time.ParseDuration(o.Heartbeat); err != nil || o.heartbeat <= 0 {
		return fmt.Errorf("heartbeat is %q: write for example \"10s\"", o.Heartbeat)
	}
	if len(o.URL) == 0 {
		return errors.New("url names no pod and no edge: write for example \"http://127.0.0.1:8080\"")
	}
	for _, url := range o.URL {
		if _, err := parseTarget(url); err != nil {
			return err
		}
	}
	if o.Streams < 1 || o.Streams > mostStreams {
		return fmt.Errorf("streams is %d: from 1 to %d", o.Streams, mostStreams)
	}
	if !(o.ConnectRate > 0) {
		return fmt.Errorf("connectRate is %v: more than 0 per second", o.ConnectRate)
	}
	return nil
}

// timeout reads a duration argument or throws.
func (i *instance) timeout(text string) time.Duration {
	limit, err := time.ParseDuration(text)
	if err != nil || limit <= 0 {
		common.Throw(i.vu.Runtime(), fmt.Errorf("a time limit is %q: write for example \"10s\"", text))
	}
	return limit
}
