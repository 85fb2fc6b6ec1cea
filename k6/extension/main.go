// k6 with `k6/x/push`: the released k6 v2, and this module beside it. `go build -o k6 .` needs no xk6; with xk6 it is
// `xk6 build v2.2.0 --with pushlab/k6/push=./push`.
package main

import (
	"go.k6.io/k6/v2/cmd"

	_ "pushlab/k6/push"
)

func main() { cmd.Execute() }
