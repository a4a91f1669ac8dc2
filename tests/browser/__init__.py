"""Tests of the dashboard, the kiosk and embedded pages in Chromium, and of the size of static files."""
