//go:build !linux || (!amd64 && !arm64)

package push

import (
	"net"
	"syscall"
)

// kernelStamps: none here; arrivals are stamped in Go.
func kernelStamps(*net.TCPConn) syscall.RawConn { return nil }

func (c *stampedConn) readStamped(into []byte) (int, error) { return c.Conn.Read(into) }
