"""The tests, in the packages of `app/`, plus `system/` (several real processes), `browser/`, `project/` and `support/`."""
