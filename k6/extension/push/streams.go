package push

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grafana/sobek"
	"github.com/sirupsen/logrus"
	"go.k6.io/k6/v2/js/common"
	"go.k6.io/k6/v2/js/promises"
	"go.k6.io/k6/v2/metrics"
)

// pollEvery is how often joined and reached look.
const pollEvery = 5 * time.Millisecond

// Streams are the streams of one subscribe. Its methods are JavaScript's: joined, reached, summary, close.
type Streams struct {
	module  *instance
	ctx     context.Context
	cancel  context.CancelFunc
	options *options
	samples chan<- metrics.SampleContainer
	tags    *metrics.TagSet
	logger  logrus.FieldLogger
	viewers []*viewer
	done    sync.WaitGroup

	joined, updates, gaps, duplicates, snapshots, reconnects, timeouts, kernel, user atomic.Uint64
	warned                                                                           atomic.Bool
}

// subscribe opens streams and returns at once. The iteration lasts until they are closed, or the scenario ends.
func (i *instance) subscribe(value sobek.Value) *Streams {
	throw := func(err error) { common.Throw(i.vu.Runtime(), err) }
	state := i.vu.State()
	if state == nil {
		throw(errors.New("push.subscribe cannot be called in the init context: call it in the function of a scenario"))
	}
	given, err := i.parse(value, "transport", "url", "posts")
	switch {
	case err != nil:
		throw(err)
	case given.Transport != "sse" && given.Transport != "stomp":
		throw(errors.New("transport is \"sse\" or \"stomp\""))
	case len(given.Posts) == 0:
		throw(errors.New("posts names no post: make one with POST /posts in setup()"))
	}
	ctx, cancel := context.WithCancel(i.vu.Context())
	tags := state.Tags.GetCurrentValues().Tags.With("transport", given.Transport)
	for name, text := range given.Tags {
		tags = tags.With(name, text)
	}
	streams := &Streams{
		module: i, ctx: ctx, cancel: cancel, options: given, samples: state.Samples, tags: tags, logger: state.Logger,
	}
	for n := range given.Streams {
		streams.viewers = append(streams.viewers, &viewer{post: given.Posts[n%len(given.Posts)]})
	}
	// Counters begin at 0: what never happened is told, too.
	own := i.metrics
	for _, metric := range []*metrics.Metric{own.gaps, own.duplicates, own.snapshots, own.reconnects, own.timeouts, own.lostFinals, own.userStamps} {
		streams.push(metric, 0, time.Now(), tags)
	}
	// k6 closes the channel of samples when all iterations are over, so this one must outlive every stream.
	over := i.vu.RegisterCallback()
	streams.done.Add(given.Streams)
	for n, viewer := range streams.viewers {
		go streams.hold(n, viewer)
	}
	go func() {
		streams.done.Wait()
		over(func() error { return nil })
	}()
	return streams
}

// push emits a sample.
func (s *Streams) push(metric *metrics.Metric, value float64, at time.Time, tags *metrics.TagSet) {
	metrics.PushIfNotDone(s.ctx, s.samples, metrics.Sample{TimeSeries: metrics.TimeSeries{Metric: metric, Tags: tags}, Time: at, Value: value})
}

// count emits a counter's increment.
func (s *Streams) count(metric *metrics.Metric, by uint64, own *atomic.Uint64, tags *metrics.TagSet) {
	if by > 0 {
		own.Add(by)
		s.push(metric, float64(by), time.Now(), tags)
	}
}

// wait sleeps unless the streams are closed meanwhile.
func (s *Streams) wait(duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-s.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// hold keeps one stream, over as many connections as it takes.
func (s *Streams) hold(number int, own *viewer) {
	defer s.done.Done()
	if !s.wait(time.Duration(float64(number) / s.options.ConnectRate * float64(time.Second))) {
		return
	}
	target, err := parseTarget(s.options.URL[number%len(s.options.URL)])
	if err != nil { // parse has looked at it before
		return
	}
	began := time.Now()
	failures := 0
	for connection := 0; s.ctx.Err() == nil; connection++ {
		if connection > 0 {
			s.count(s.module.metrics.reconnects, 1, &s.reconnects, s.tags)
		}
		link := link{target: target, options: s.options, post: own.post, lastID: own.lastID, onUpdate: func(body []byte, id string, at time.Time, source string) error {
			told, err := own.take(body, id, at)
			if err != nil {
				return err
			}
			s.tell(told, at, began, source)
			return nil
		}}
		end := link.run(s.ctx)
		if s.ctx.Err() != nil {
			return
		}
		if link.opened {
			failures = 0
		} else {
			failures++
		}
		s.complain(end, link.opened)
		if !s.wait(backOff(end.retry, failures)) {
			return
		}
	}
}

// backOff is the wait before the next connection: the server's wish, or 0.5–1.5 s; doubled per failure, at most 30 s.
func backOff(wish time.Duration, failures int) time.Duration {
	if wish == 0 {
		wish = 500*time.Millisecond + rand.N(time.Second)
	}
	return min(wish<<min(max(failures-1, 0), 6), 30*time.Second)
}

// complain counts time-outs and says the first reason aloud.
func (s *Streams) complain(end *ended, opened bool) {
	var network interface{ Timeout() bool }
	if errors.Is(end.why, os.ErrDeadlineExceeded) || (errors.As(end.why, &network) && network.Timeout()) {
		kind := "connect"
		if opened {
			kind = "silent"
		}
		s.count(s.module.metrics.timeouts, 1, &s.timeouts, s.tags.With("kind", kind))
	}
	if !s.warned.Swap(true) {
		s.logger.WithError(end.why).Warn("push: a stream ended (the first of possibly many) and is opened again")
	}
}

// tell turns an update into samples.
func (s *Streams) tell(told news, at, began time.Time, source string) {
	instruments := s.module.metrics
	if told.joined {
		s.joined.Add(1)
		s.push(instruments.timeToJoin, metrics.D(at.Sub(began)), at, s.tags)
	}
	if told.snapshot {
		s.count(instruments.snapshots, 1, &s.snapshots, s.tags)
	}
	if told.duplicate {
		s.count(instruments.duplicates, 1, &s.duplicates, s.tags)
	}
	s.count(instruments.gaps, told.gap, &s.gaps, s.tags)
	if told.measured {
		s.updates.Add(1)
		if source == "kernel" {
			s.kernel.Add(1)
		} else {
			s.count(instruments.userStamps, 1, &s.user, s.tags)
		}
		s.push(instruments.commitToArrival, metrics.D(told.latency), at, s.tags.With("stamped", source))
	}
}

// until waits for missing() to be 0, at most as long as limit; what was missing then.
func (s *Streams) until(limit time.Duration, missing func() int) int {
	deadline := time.Now().Add(limit)
	for {
		left := missing()
		if left == 0 || time.Now().After(deadline) || !s.wait(pollEvery) {
			return left
		}
	}
}

// Joined resolves with the number of streams that have a first state, when all have or the time is over.
func (s *Streams) Joined(limit string) *sobek.Promise {
	wait := s.module.timeout(limit)
	promise, resolve, _ := promises.New(s.module.vu)
	go func() {
		s.until(wait, func() int { return len(s.viewers) - int(s.joined.Load()) })
		resolve(s.joined.Load())
	}()
	return promise
}

// Reached resolves with the number of streams that are not on the given versions (post → version) when the time is over;
// they are counted as lost finals.
func (s *Streams) Reached(versions map[string]uint64, limit string) *sobek.Promise {
	wait := s.module.timeout(limit)
	finals := make(map[uint64]uint64, len(versions))
	for post, version := range versions {
		finals[parsePost(post)] = version
	}
	promise, resolve, _ := promises.New(s.module.vu)
	go func() {
		lost := s.until(wait, func() (missing int) {
			for _, viewer := range s.viewers {
				if version, asked := finals[viewer.post]; asked && !viewer.reached(version) {
					missing++
				}
			}
			return missing
		})
		s.push(s.module.metrics.lostFinals, float64(lost), time.Now(), s.tags)
		resolve(lost)
	}()
	return promise
}

// Summary is what these streams have counted so far; `stamped` says who stamped the arrivals.
func (s *Streams) Summary() map[string]any {
	stamped := "kernel"
	switch kernel, user := s.kernel.Load(), s.user.Load(); {
	case user > 0 && kernel > 0:
		stamped = "kernel and go"
	case user > 0:
		stamped = "go"
	}
	return map[string]any{
		"streams": len(s.viewers), "joined": s.joined.Load(), "updates": s.updates.Load(), "gaps": s.gaps.Load(),
		"duplicates": s.duplicates.Load(), "snapshots": s.snapshots.Load(), "reconnects": s.reconnects.Load(),
		"timeouts": s.timeouts.Load(), "stamped": stamped,
	}
}

// Close ends all streams; the iteration can end then.
func (s *Streams) Close() { s.cancel() }
