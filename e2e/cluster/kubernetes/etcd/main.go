// SPDX-License-Identifier: Apache-2.0

// etcd, in the version that the API server's own client is built from.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
