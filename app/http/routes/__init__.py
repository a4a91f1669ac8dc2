"""The routes, one module per subject. A module may import `app.http` and lower packages, but no other route module."""
