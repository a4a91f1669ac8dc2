"""Tests of the dashboard, the kiosk and embedded pages in Chromium, and of the static files."""
