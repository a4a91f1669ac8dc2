"""The tests: one package per package of `app/`, plus `system/`, `browser/`, `project/` and `support/`."""
