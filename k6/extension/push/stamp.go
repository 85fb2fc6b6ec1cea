package push

import (
	"net"
	"syscall"
	"time"
)

// stampedConn remembers when the bytes of its last Read reached this machine. Only the goroutine that reads may ask.
type stampedConn struct {
	net.Conn
	silence time.Duration
	raw     syscall.RawConn // none: this system gives no stamps
	control [64]byte
	at      time.Time
	kernel  bool
}

// stamp wraps conn and asks the kernel for stamps, where it gives them.
func stamp(conn net.Conn, silence time.Duration) *stampedConn {
	stamped := &stampedConn{Conn: conn, silence: silence}
	if tcp, ok := conn.(*net.TCPConn); ok {
		stamped.raw = kernelStamps(tcp)
	}
	return stamped
}

// Read implements net.Conn; a silent peer is os.ErrDeadlineExceeded.
func (c *stampedConn) Read(into []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	if c.raw != nil && len(into) > 0 {
		return c.readStamped(into)
	}
	n, err := c.Conn.Read(into)
	c.at, c.kernel = time.Now(), false
	return n, err
}

// source says who took the last stamp.
func (c *stampedConn) source() string {
	if c.kernel {
		return "kernel"
	}
	return "go"
}
