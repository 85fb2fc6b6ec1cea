//go:build linux && (amd64 || arm64)

package push

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// kernelStamps asks for SO_TIMESTAMPNS: the time at which a segment reached the socket. None where it is refused.
func kernelStamps(conn *net.TCPConn) syscall.RawConn {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TIMESTAMPNS, 1)
	})
	if err != nil || refused != nil {
		return nil
	}
	return raw
}

// readStamped is Read with recvmsg, which returns the stamp of the newest bytes beside them.
func (c *stampedConn) readStamped(into []byte) (int, error) {
	var n, control int
	var failed error
	err := c.raw.Read(func(fd uintptr) bool {
		for {
			n, control, _, _, failed = syscall.Recvmsg(int(fd), into, c.control[:], 0)
			if failed != syscall.EINTR {
				return failed != syscall.EAGAIN
			}
		}
	})
	c.at, c.kernel = time.Now(), false
	switch {
	case err != nil:
		return 0, err
	case failed != nil:
		return 0, os.NewSyscallError("recvmsg", failed)
	case n == 0:
		return 0, io.EOF
	}
	if at, ok := stampIn(c.control[:control]); ok {
		c.at, c.kernel = at, true
	}
	return n, nil
}

// stampIn finds SCM_TIMESTAMPNS in control messages: length (8), level (4), type (4), then seconds and nanoseconds (8 each).
func stampIn(control []byte) (time.Time, bool) {
	order := binary.NativeEndian
	for len(control) >= syscall.SizeofCmsghdr {
		length := int(order.Uint64(control))
		if length < syscall.SizeofCmsghdr || length > len(control) {
			break
		}
		level, kind := order.Uint32(control[8:]), order.Uint32(control[12:])
		if level == syscall.SOL_SOCKET && kind == syscall.SCM_TIMESTAMPNS && length >= syscall.SizeofCmsghdr+16 {
			return time.Unix(int64(order.Uint64(control[16:])), int64(order.Uint64(control[24:]))), true
		}
		control = control[min((length+7)&^7, len(control)):]
	}
	return time.Time{}, false
}
