"""What the tests run on: servers, proxies, loads, the history checker and the accuracy scenarios."""
