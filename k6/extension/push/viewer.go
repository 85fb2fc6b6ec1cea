package push

import (
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"time"
)

// update is the body of an event or MESSAGE: a change (prev, committedAt) or a marked snapshot.
type update struct {
	PostID      uint64  `json:"postId"`
	Version     uint64  `json:"version"`
	Prev        *uint64 `json:"prev"`
	CommittedAt *int64  `json:"committedAt"`
	Snapshot    bool    `json:"snapshot"`
}

// news is what an update means to a stream.
type news struct {
	joined, snapshot, duplicate bool
	// Versions between the last one seen and the first one told.
	gap uint64
	// Commit to arrival, of a change that was not seen before.
	latency  time.Duration
	measured bool
}

// viewer is what one stream has seen, over all its connections.
type viewer struct {
	post uint64
	// The id of the last update, for Last-Event-ID and last-version.
	lastID string
	epoch  string
	known  bool
	// Its newest version + 1, so that 0 means none; read by others.
	seen atomic.Uint64
}

var errUpdate = errors.New("neither a change nor a snapshot")

// take reads an update that arrived at the given time.
func (v *viewer) take(body []byte, id string, at time.Time) (news, error) {
	var got update
	if err := json.Unmarshal(body, &got); err != nil {
		return news{}, err
	}
	if got.PostID != v.post || (!got.Snapshot && (got.Prev == nil || got.CommittedAt == nil)) {
		return news{}, errUpdate
	}
	if id != "" {
		v.lastID = id
		if epoch, _, _ := strings.Cut(id, "."); epoch != v.epoch {
			v.epoch, v.known = epoch, false // versions compare only within an epoch
		}
	}
	var version uint64
	if v.known {
		version = v.seen.Load() - 1
	}
	told := news{joined: !v.known, snapshot: got.Snapshot}
	switch {
	case got.Snapshot:
		if v.known && got.Version > version {
			told.gap = got.Version - version
		}
	case v.known && got.Version <= version:
		told.duplicate = true
	default:
		if v.known && *got.Prev > version {
			told.gap = *got.Prev - version
		}
		told.latency, told.measured = at.Sub(time.UnixMicro(*got.CommittedAt)), true
	}
	if !v.known || got.Version > version {
		v.seen.Store(got.Version + 1)
	}
	v.known = true
	return told, nil
}

// reached tells whether the viewer is on this version or a newer one.
func (v *viewer) reached(version uint64) bool { return v.seen.Load() > version }
