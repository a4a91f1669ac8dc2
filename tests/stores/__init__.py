"""Tests of the stores: the contract on every store, then what is particular to one."""
