"""The contract of CounterStore, tested on every store: a new store is one more parameter of `make_store`."""
