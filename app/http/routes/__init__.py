"""The routes, one module per subject. A route module imports `app.http.*` and lower packages, never another one."""
