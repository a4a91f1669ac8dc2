"""Tests of app/alerts, with a real receiver on a real socket."""
