module gossiper/benchmarks/peers/memberlist

go 1.24

require (
	github.com/hashicorp/go-msgpack/v2 v2.1.5
	github.com/hashicorp/memberlist v0.7.0
)
